"""The records of jobs and attempts: how they are read, and the one way in which they change.

Every change reads the job under WATCH, decides, and writes record, event and wake-up in one MULTI/EXEC, so that
state and history cannot part, two writers cannot both win, and no script runs on the server. A change that finds a
newer attempt raises Fenced; one that is already done does nothing, so a caller who lost the reply may ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from trackside.bus import keys, streams
from trackside.bus.client import Pipeline
from trackside.codec import decode_fields
from trackside.errors import BusDenied, Fenced, IllegalTransition, NotFound, ServerBehind
from trackside.models import Attempt, AttemptState, Breaker, Event, EventKind, Job, JobState
from trackside.records import decoded, replace_hash
from trackside.retry import at_once
from trackside.slotstore import SlotStore

_PART_BYTES: Final = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a decision writes: the new records, the events behind them, and more for the same transaction."""

    job: Job
    attempt: Attempt | None = None
    events: tuple[Event, ...] = ()
    also: Callable[[Pipeline], None] | None = None


class JobStore(SlotStore):
    """Jobs and attempts, read and changed; what may be asked of them is in the classes above this one."""

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
        key = keys.snapshot(sha256)
        try:
            archive = self._in_parts(key)
        except BusDenied:  # a deployment's users were made by an earlier version, which read it whole
            archive = cast(bytes | None, self.client.get(key)) or b""
        if not archive:
            raise NotFound(f"the snapshot {sha256[:12]} is not on the bus: submit the job again", sha256=sha256)
        return archive

    def _in_parts(self, key: str) -> bytes:
        parts: list[bytes] = []
        while not parts or len(parts[-1]) == _PART_BYTES:
            start = len(parts) * _PART_BYTES
            parts.append(cast(bytes, self.client.getrange(key, start, start + _PART_BYTES - 1)))
        return b"".join(parts)

    # -- the one way to change a job -------------------------------------------------------------------------------

    def change(self, job_id: str, decide: Callable[[Job, int], Change | None]) -> Job:
        """Read the job under WATCH, ask `decide(job, now_ms)`, write what it returns; None means nothing to do.

        `decide` may run several times, so it must only look. Raises NotFound, or what `decide` raises.
        """
        return at_once(lambda: self._change(job_id, None, lambda job, _, now: decide(job, now)))

    def change_with_breaker(
        self, job_id: str, slot_id: str, decide: Callable[[Job, Breaker, int], Change | None]
    ) -> Job:
        """`change` for a decision about a slot's breaker too, which nobody moves while it is made."""

        def turn(job: Job, raw: dict[bytes, bytes], now: int) -> Change | None:
            found = decoded(Breaker, [raw])
            return decide(job, found[0] if found else Breaker(slot=slot_id), now)

        return at_once(lambda: self._change(job_id, keys.breaker(slot_id), turn))

    def _change_attempt(self, job_id: str, number: int, decide: Callable[[Job, Attempt, int], Change | None]) -> Job:
        """`change` for the holder of an attempt: raises Fenced when it is not the job's newest."""

        def turn(job: Job, raw: dict[bytes, bytes], now: int) -> Change | None:
            check_not_behind(job, number)
            if job.attempt != number:
                raise Fenced(
                    f"attempt {number} of {job_id!r} is fenced: attempt {job.attempt} owns the job", job=job_id
                )
            return decide(job, _attempt(job_id, number, raw), now)

        return at_once(lambda: self._change(job_id, keys.attempt(job_id, number), turn))

    def _change(
        self, job_id: str, other: str | None, decide: Callable[[Job, dict[bytes, bytes], int], Change | None]
    ) -> Job:
        """`other`: the key of a record that the decision looks at too."""
        key, beside = keys.job(job_id), () if other is None else (other,)
        reads = [("HGETALL", each) for each in (key, *beside)]

        def turn(pipe: Pipeline) -> Job:
            raw, *more, now = self.look(pipe, key, *reads, beside=beside)
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
            raise IllegalTransition(_refused(job, state), job=job.id, old=job.state, new=state)
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


# What a person asks for that leads to a state.
_ASKED: Final = {
    JobState.QUEUED: "resumed",
    JobState.PAUSING: "paused",
    JobState.PAUSED: "paused",
    JobState.CANCELLING: "cancelled",
    JobState.CANCELLED: "cancelled",
}


def _refused(job: Job, state: JobState) -> str:
    """Why a job cannot come to a state, and what to do instead."""
    match job.state:
        case JobState.SUCCEEDED:
            todo = "its work is done, and `trackside submit` does it again"
        case JobState.FAILED | JobState.CANCELLED:
            todo = f"`trackside retry {job.id}` does it again"
        case JobState.CANCELLING:
            todo = f"wait for its end, then `trackside retry {job.id}` does it again"
        case _:
            todo = f"`trackside why {job.id}` tells what comes next for it"
    return f"job {job.id!r} is {job.state} and cannot be {_ASKED.get(state, state.value)}: {todo}"


def check_not_behind(job: Job, number: int) -> None:
    """Raise ServerBehind where the record knows only attempts before `number`, which was given out."""
    if job.attempt < number:
        raise ServerBehind(
            f"the server knows attempt {job.attempt} of {job.id!r} only, and {number} was given out: its records are "
            "rebuilt from the supervisor's ledger, or restore its data from a backup",
            job=job.id,
        )


def check_open(attempt: Attempt) -> None:
    """Raise Fenced where an attempt is over: nothing more is told of it."""
    if attempt.state is AttemptState.ENDED:
        raise Fenced(f"attempt {attempt.number} of {attempt.job!r} has ended already")


def with_facts(attempt: Attempt, facts: Mapping[str, Any]) -> Attempt:
    """With those of the facts that its record has a place for."""
    known = {name: value for name, value in facts.items() if name in Attempt.__dataclass_fields__}
    return replace(attempt, **known)


def _attempt(job_id: str, number: int, raw: dict[bytes, bytes]) -> Attempt:
    if not raw:
        raise NotFound(f"job {job_id!r} has no attempt {number}", job=job_id, attempt=number)
    return decode_fields(Attempt, raw)
