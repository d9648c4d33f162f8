"""The records of jobs and attempts: read here, and written nowhere else.

Every change reads the job under WATCH, decides, and writes record, event and wake-up in one MULTI/EXEC, so that
state and history cannot part, two writers cannot both win, and no script runs on the server. A change that finds a
newer attempt raises Fenced; one that is already done does nothing, so a caller who lost the reply may ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from trackside.bus import keys, streams
from trackside.bus.client import Pipeline
from trackside.codec import decode_fields
from trackside.errors import Fenced, IllegalTransition, InvalidJob, NotFound, ServerBehind
from trackside.models import (
    Attempt,
    AttemptState,
    CheckpointRef,
    Event,
    EventKind,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Slot,
)
from trackside.retry import at_once
from trackside.slotstore import SlotStore, decoded, replace_hash

_PART_BYTES: Final = 256 * 1024
CHECKPOINTS_KEPT: Final = 10  # names on the record; the run decides how many directories it keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a decision writes: the new records, the events behind them, and more for the same transaction."""

    job: Job
    attempt: Attempt | None = None
    events: tuple[Event, ...] = ()
    also: Callable[[Pipeline], None] | None = None


class Store(SlotStore):
    """Jobs, attempts and slots on the bus. `by` names the writer in the history (role:name)."""

    # -- reading ---------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job:
        """The job's record; raises NotFound."""
        raw = cast(dict[bytes, bytes], self.client.hgetall(keys.job(job_id)))
        if not raw:
            raise NotFound(f"no job {job_id!r}: `trackside ls` lists the jobs", job=job_id)
        return decode_fields(Job, raw)

    def jobs(self, job_ids: Iterable[str]) -> list[Job]:
        """The records of these jobs; one that is gone or cannot be read is left out."""
        return decoded(Job, self.hashes(keys.job(job_id) for job_id in job_ids))

    def job_ids(self, limit: int | None = None) -> list[str]:
        """Ids of all jobs, newest first."""
        stop = -1 if limit is None else limit - 1
        return [raw.decode() for raw in cast(list[bytes], self.client.zrevrange(keys.JOBS, 0, stop))]

    def live_job_ids(self) -> list[str]:
        """Ids of the jobs not yet in a terminal state."""
        return sorted(raw.decode() for raw in cast(set[bytes], self.client.smembers(keys.LIVE_JOBS)))

    def attempt(self, job_id: str, number: int) -> Attempt:
        """The attempt's record; raises NotFound."""
        return _attempt(job_id, number, cast(dict[bytes, bytes], self.client.hgetall(keys.attempt(job_id, number))))

    def attempts(self, job: Job) -> list[Attempt]:
        """All attempts of a job, first to newest."""
        return decoded(Attempt, self.hashes(keys.attempt(job.id, n) for n in range(1, job.attempt + 1)))

    def snapshot(self, sha256: str) -> bytes:
        """A submitted folder's archive; raises NotFound.

        Read in parts, since a line that breaks now and then carries a part, and never the whole.
        """
        parts: list[bytes] = []
        while not parts or len(parts[-1]) == _PART_BYTES:
            start = len(parts) * _PART_BYTES
            parts.append(cast(bytes, self.client.getrange(keys.snapshot(sha256), start, start + _PART_BYTES - 1)))
        if not parts[0]:
            raise NotFound(f"the snapshot {sha256[:12]} is not on the bus: submit the job again", sha256=sha256)
        return b"".join(parts)

    # -- what people ask for ---------------------------------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        name: str,
        spec: JobSpec,
        snapshot: bytes | None = None,
        checkpoints: tuple[CheckpointRef, ...] = (),
    ) -> Job:
        """Put a job on the bus, once: the same id again returns what is there.

        `checkpoints` are another job's, to go on from. Raises NotFound for a job in `spec.after` that is not there.
        """
        if snapshot is not None and spec.snapshot is not None:
            self.client.set(keys.snapshot(spec.snapshot), snapshot, nx=True)
        key = keys.job(job_id)
        parents = [("EXISTS", keys.job(parent)) for parent in spec.after]

        def turn(pipe: Pipeline) -> Job:
            raw, *there, now = self.look(pipe, key, ("HGETALL", key), *parents)
            if raw:
                return decode_fields(Job, raw)
            for parent, found in zip(spec.after, there, strict=True):
                if not found:
                    raise NotFound(f"no job {parent!r} to wait for: `trackside ls --all` lists the jobs", job=parent)
            job = Job(
                id=job_id, name=name, state=JobState.QUEUED, spec=spec, created_at_ms=now, changed_at_ms=now,
                detail=_waits(spec), checkpoints=checkpoints,
            )  # fmt: skip
            facts = {"retry_of": spec.retry_of, "from": checkpoints[0].name if checkpoints else None}
            event = Event(
                kind=EventKind.SUBMITTED, at_ms=now, job=job_id, new=job.state, by=self._by, cause="submitted",
                data={name: value for name, value in facts.items() if value is not None},
            )  # fmt: skip
            pipe.multi()
            pipe.zadd(keys.JOBS, {job_id: now})
            self._write(pipe, Change(job=job, events=(event,)))
            pipe.execute()
            return job

        return self.until_undisturbed(turn, f"job {job_id!r}", job=job_id)

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once where nothing runs, else by its worker. A finished job refuses."""

        def decide(job: Job, now: int) -> Change | None:
            if job.state in (JobState.CANCELLING, JobState.CANCELLED):
                return None
            if job.state.terminal:
                raise IllegalTransition(f"job {job_id!r} has {job.state} already: nothing to cancel", state=job.state)
            running = job.slot is not None
            new = JobState.CANCELLING if running else JobState.CANCELLED
            detail = "stops at the next step" if running else "cancelled before it ran again"
            return self.moved(job, new, now, cause="cancel requested", detail=detail)

        return self.change(job_id, decide)

    def pause(self, job_id: str) -> Job:
        """Ask for a pause: at once where nothing runs, else at the next step boundary with a checkpoint."""

        def decide(job: Job, now: int) -> Change | None:
            if job.state in (JobState.PAUSING, JobState.PAUSED):
                return None
            given = job.slot is not None
            new = JobState.PAUSING if given else JobState.PAUSED
            detail = "saves at the next step" if given else "paused; `trackside resume` goes on"
            return self.moved(job, new, now, cause="pause requested", detail=detail)

        return self.change(job_id, decide)

    def refuse_pause(self, job_id: str, number: int, why: str) -> Job:
        """Its worker says that the running attempt cannot pause: the job runs on."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if job.state is not JobState.PAUSING:
                return None
            return self.moved(job, JobState.RUNNING, now, cause="pause refused", detail=why)

        return self._change_attempt(job_id, number, decide)

    def resume(self, job_id: str, checkpoint: str | None = None) -> Job:
        """Let a paused job go on under the same id: from its newest checkpoint, or back at an accepted one.

        One that is still on its way to pausing trains on.
        Going back takes the newer ones off the record; their folders stay on the disk until they are pruned.
        """

        def decide(job: Job, now: int) -> Change | None:
            newest = job.checkpoints[0].name if job.checkpoints else None
            going = job.state in (JobState.QUEUED, JobState.RUNNING)
            if going and checkpoint in (None, newest):
                return None
            if checkpoint is None and job.state is JobState.PAUSING:
                return self.moved(job, JobState.RUNNING, now, cause="resume requested", detail="trains on, not paused")
            if checkpoint is None:
                detail = _waits(job.spec, job)
                return self.moved(job, JobState.QUEUED, now, cause="resume requested", detail=detail, host_faults=0)
            if job.state is not JobState.PAUSED:
                raise IllegalTransition(
                    f"job {job_id!r} is {job.state}: only a paused one can go back to a checkpoint, so pause it first",
                    state=job.state,
                )
            names = [known.name for known in job.checkpoints]
            if checkpoint not in names:
                there = ", ".join(names) or "none"
                raise NotFound(f"job {job_id!r} has no checkpoint {checkpoint!r}; accepted ones: {there}", job=job_id)
            at = names.index(checkpoint)
            return self.moved(
                job, JobState.QUEUED, now, cause="resume requested", detail=f"goes back to {checkpoint}",
                inputs={"from": checkpoint, "dropped": names[:at]},
                checkpoints=job.checkpoints[at:], failures=0, barren=0, host_faults=0, rollbacks=0,
                bad_step=None,
            )  # fmt: skip

        return self.change(job_id, decide)

    def retry(self, job_id: str, new_id: str, *, fresh: bool = False, by: str | None = None) -> Job:
        """Submit a failed or cancelled job again, as a new one that goes on from the old one's checkpoints.

        `fresh` starts over. The same `new_id` again returns what is there.
        """
        old = self.job(job_id)
        if old.state not in (JobState.FAILED, JobState.CANCELLED):
            hint = "nothing is to be done again" if old.state is JobState.SUCCEEDED else "cancel it first"
            raise IllegalTransition(f"job {job_id!r} is {old.state}: {hint}", job=job_id, state=old.state)
        for parent in self.jobs(old.spec.after):
            if parent.state in (JobState.FAILED, JobState.CANCELLED):
                raise InvalidJob(
                    f"job {job_id!r} waits for {parent.id!r}, which {parent.state}: retry that one, then submit this "
                    "one again with --after the new id",
                    job=job_id,
                )
        spec = replace(old.spec, retry_of=old.id, submitted_by=by or old.spec.submitted_by)
        return self.submit(new_id, old.name, spec, checkpoints=() if fresh else _inherited(old))

    # -- the life of an attempt ------------------------------------------------------------------------------------

    def assign(self, job_id: str, slot: Slot, push: Callable[[Pipeline, Job], None], **facts: Any) -> Job:
        """Give a queued job's next attempt to a slot; `push` puts it on that slot's RQ queue in the same transaction.

        Opens the job's streams for the new attempt, which fences every older one. `facts` are told with the event.
        """

        def decide(job: Job, now: int) -> Change | None:
            if job.state is not JobState.QUEUED or job.slot is not None:
                return None
            number = job.attempt + 1
            new = replace(job, attempt=number, slot=slot.id, retry_at_ms=None, detail=f"given to {slot.id}")
            attempt = Attempt(
                job=job_id, number=number, state=AttemptState.ASSIGNED, slot=slot.id, host=slot.host, assigned_at_ms=now
            )
            event = self.job_event(
                new, EventKind.ASSIGNED, now, cause="slot free", slot=slot.id, host=slot.host, **facts
            )

            def also(pipe: Pipeline) -> None:
                streams.open_attempt(pipe, job_id, number)
                push(pipe, new)

            return Change(job=new, attempt=attempt, events=(event,), also=also)

        return self.change(job_id, decide)

    def claim(self, job_id: str, number: int, *, worker_pid: int) -> Job:
        """The slot's worker takes its attempt: the job runs. Raises Fenced if the attempt is not to run."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if attempt.state is AttemptState.RUNNING and attempt.worker_pid == worker_pid:
                return None
            if attempt.state is not AttemptState.ASSIGNED or job.state.terminal:
                raise Fenced(f"attempt {number} of {job_id!r} is {attempt.state}, the job {job.state}: not to be run")
            started = replace(attempt, state=AttemptState.RUNNING, worker_pid=worker_pid, started_at_ms=now)
            event = self.job_event(job, EventKind.STARTED, now, slot=attempt.slot, worker_pid=worker_pid)
            if job.state is not JobState.QUEUED:  # a cancel came in between: the worker sees it at its first look
                return Change(job=job, attempt=started, events=(event,))
            changes: dict[str, Any] = {"first_started_at_ms": job.first_started_at_ms or now}
            change = self.moved(job, JobState.RUNNING, now, cause="worker claimed it", detail=None, **changes)
            return replace(change, attempt=started, events=(event, *change.events))

        return self._change_attempt(job_id, number, decide)

    def note_attempt(self, job_id: str, number: int, kind: EventKind, cause: str, **facts: Any) -> Job:
        """Record facts of a running attempt (pid, resumed_from, total_steps, ...) and tell them as an event."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if attempt.state is AttemptState.ENDED:
                raise Fenced(f"attempt {number} of {job_id!r} has ended already")
            known = {name: value for name, value in facts.items() if name in Attempt.__dataclass_fields__}
            event = self.job_event(job, kind, now, cause=cause, **facts)
            return Change(job=job, attempt=replace(attempt, **known), events=(event,))

        return self._change_attempt(job_id, number, decide)

    def accept_checkpoint(self, job_id: str, number: int, checkpoint: CheckpointRef) -> Job:
        """Make a written checkpoint the one to resume from; a newer one restores the retry budget."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if any(known.name == checkpoint.name and known.job is None for known in job.checkpoints):
                return None
            if attempt.state is AttemptState.ENDED:
                raise Fenced(f"attempt {number} of {job_id!r} has ended already: its checkpoint is not taken")
            stamped = replace(checkpoint, at_ms=now)
            newest = job.checkpoints[0].step if job.checkpoints else 0
            progress = checkpoint.step > newest
            kept = tuple(sorted((stamped, *job.checkpoints), key=lambda c: (c.step, c.attempt), reverse=True))
            if stamped not in kept[:CHECKPOINTS_KEPT]:
                return None  # told again after the server had lost it, and long replaced
            new = replace(
                job,
                checkpoints=kept[:CHECKPOINTS_KEPT],
                failures=0 if progress else job.failures,
                barren=0 if progress else job.barren,
                host_faults=0 if progress else job.host_faults,
            )
            facts: dict[str, Any] = {"name": checkpoint.name, "step": checkpoint.step, "digest": checkpoint.digest}
            event = self.job_event(job, EventKind.CHECKPOINT, now, **facts)
            return Change(job=new, attempt=attempt, events=(event,))

        return self._change_attempt(job_id, number, decide)

    def end_attempt(self, job_id: str, number: int, outcome: Outcome, **facts: Any) -> Job:
        """Close an attempt with its one reason and free its slot; the supervisor decides what comes of the job.

        Ended already: does nothing. A newer attempt is open: raises Fenced. `facts` are told with the event.
        """

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if attempt.state is AttemptState.ENDED:
                return None
            ran = outcome.ran_ms
            if ran is None:  # nobody saw its process start
                ran = now - attempt.started_at_ms if attempt.started_at_ms is not None else 0
            ended = replace(attempt, state=AttemptState.ENDED, ended_at_ms=now, outcome=outcome)
            new = replace(job, slot=None, reason=outcome.reason, ran_ms=job.ran_ms + ran)
            told = {
                "slot": attempt.slot,
                "last_step": outcome.last_step,
                "exit_code": outcome.exit_code,
                "signal": outcome.signal,
                "noticed_after_ms": outcome.noticed_after_ms,
                "detail": outcome.detail,
            }
            event = self.job_event(job, EventKind.ENDED, now, cause=outcome.reason.value, **told, **facts)
            return Change(job=new, attempt=ended, events=(event,))

        return self._change_attempt(job_id, number, decide)

    # -- the one way to change a job -------------------------------------------------------------------------------

    def change(self, job_id: str, decide: Callable[[Job, int], Change | None]) -> Job:
        """Read the job under WATCH, ask `decide(job, now_ms)`, write what it returns; None means nothing to do.

        `decide` may run several times, so it must only look. Raises NotFound, or what `decide` raises.
        """
        return at_once(lambda: self._change(job_id, None, lambda job, _, now: decide(job, now)))

    def _change_attempt(self, job_id: str, number: int, decide: Callable[[Job, Attempt, int], Change | None]) -> Job:
        """`change` for the holder of an attempt: raises Fenced when it is not the job's newest."""

        def turn(job: Job, raw: dict[bytes, bytes], now: int) -> Change | None:
            check_not_behind(job, number)
            if job.attempt != number:
                raise Fenced(
                    f"attempt {number} of {job_id!r} is fenced: attempt {job.attempt} owns the job", job=job_id
                )
            return decide(job, _attempt(job_id, number, raw), now)

        return at_once(lambda: self._change(job_id, number, turn))

    def _change(
        self, job_id: str, number: int | None, decide: Callable[[Job, dict[bytes, bytes], int], Change | None]
    ) -> Job:
        key = keys.job(job_id)
        reads = [("HGETALL", key), *([("HGETALL", keys.attempt(job_id, number))] if number is not None else [])]

        def turn(pipe: Pipeline) -> Job:
            raw, *more, now = self.look(pipe, key, *reads)
            if not raw:
                raise NotFound(f"no job {job_id!r}: `trackside ls` lists the jobs", job=job_id)
            job = decode_fields(Job, raw)
            change = decide(job, more[0] if more else {}, now)
            if change is None:
                return job
            pipe.multi()
            self._write(pipe, change)
            pipe.execute()
            return change.job

        return self.until_undisturbed(turn, f"job {job_id!r}", job=job_id)

    def moved(
        self,
        job: Job,
        state: JobState,
        now: int,
        *,
        cause: str,
        detail: str | None,
        inputs: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Change:
        """The change that moves a job to `state`; raises IllegalTransition where the state chart has no such move."""
        if not job.state.may_become(state):
            raise IllegalTransition(
                f"job {job.id!r} is {job.state} and cannot become {state}", job=job.id, old=job.state, new=state
            )
        ended = {"ended_at_ms": now} if state.terminal else {}
        new = replace(job, state=state, changed_at_ms=now, detail=detail, **{"retry_at_ms": None, **ended, **fields})
        data = {name: value for name, value in (inputs or {}).items() if value is not None}
        event = Event(
            kind=EventKind.TRANSITION, at_ms=now, job=job.id, attempt=job.attempt or None, cause=cause, old=job.state,
            new=state, by=self._by, data={**data, **({"detail": detail} if detail else {})},
        )  # fmt: skip
        return Change(job=new, events=(event,))

    def tell(self, cause: str, **data: Any) -> None:
        """Write a note that is about no one job; raises Conflict where a lease is to be held and is not."""

        facts = {name: value for name, value in data.items() if value is not None}

        def turn(pipe: Pipeline) -> None:
            (now,) = self.look(pipe, keys.LEADER)
            pipe.multi()
            streams.append_event(pipe, Event(kind=EventKind.NOTE, at_ms=now, cause=cause, by=self._by, data=facts))
            pipe.execute()

        self.until_undisturbed(turn, "the lease")

    def job_event(self, job: Job, kind: EventKind, now: int, *, cause: str | None = None, **data: Any) -> Event:
        """An event about a job's newest attempt."""
        facts = {name: value for name, value in data.items() if value is not None}
        return Event(
            kind=kind, at_ms=now, job=job.id, attempt=job.attempt or None, cause=cause, by=self._by, data=facts
        )

    def _write(self, pipe: Pipeline, change: Change) -> None:
        job = change.job
        replace_hash(pipe, keys.job(job.id), job)
        if job.state.terminal:
            pipe.srem(keys.LIVE_JOBS, job.id)
        else:
            pipe.sadd(keys.LIVE_JOBS, job.id)
        if change.attempt is not None:
            replace_hash(pipe, keys.attempt(job.id, change.attempt.number), change.attempt)
        for event in change.events:
            streams.append_event(pipe, event)
        if change.also is not None:
            change.also(pipe)


def check_not_behind(job: Job, number: int) -> None:
    """Raise ServerBehind where the record knows only attempts before `number`, which was given out."""
    if job.attempt < number:
        raise ServerBehind(
            f"the server knows attempt {job.attempt} of {job.id!r} only, and {number} was given out: its records are "
            "rebuilt from the supervisor's ledger, or restore its data from a backup",
            job=job.id,
        )


def _attempt(job_id: str, number: int, raw: dict[bytes, bytes]) -> Attempt:
    if not raw:
        raise NotFound(f"job {job_id!r} has no attempt {number}", job=job_id, attempt=number)
    return decode_fields(Attempt, raw)


def _waits(spec: JobSpec, job: Job | None = None) -> str:
    """Why a queued job does not run yet."""
    if spec.after and (job is None or job.attempt == 0):
        return f"waits for {', '.join(spec.after)} to succeed"
    return "waits for a free slot"


def _inherited(old: Job) -> tuple[CheckpointRef, ...]:
    """A job's checkpoints as its successor lists them: one a step, in the folder of the job that wrote it."""
    newest = {found.step: found for found in reversed(old.checkpoints)}
    return tuple(
        replace(found, attempt=0, job=found.job or old.id) for _, found in sorted(newest.items(), reverse=True)
    )
