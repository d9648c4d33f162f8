"""Jobs, attempts and slots on the bus: one class for all that reads and changes them, and here the life of an attempt.

The records are written here and below (`jobcontrol.py`, `jobstore.py`, `slotstore.py`), by `restoring.py` where a
server lost them, and nowhere else; all of them in the one way that `records.py` has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from trackside.bus import streams
from trackside.bus.client import Pipeline
from trackside.errors import Fenced
from trackside.jobcontrol import JobControl
from trackside.jobstore import Change, check_not_behind
from trackside.line import FREE_SLOT
from trackside.models import Attempt, AttemptState, CheckpointRef, EventKind, Job, JobState, Outcome, Slot

__all__ = ["CHECKPOINTS_KEPT", "Change", "Lying", "Store", "check_not_behind"]

CHECKPOINTS_KEPT: Final = 10  # names on the record; the run decides how many directories it keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class Lying:
    """What lies in a job's folder of checkpoints, as whoever looked there saw it."""

    storage: str
    names: Collection[str]

    def gone(self, job: Job) -> list[CheckpointRef]:
        """Those on the record that were there and are not; what lies elsewhere is not judged."""
        own = (ref for ref in job.checkpoints if ref.job is None and ref.storage == self.storage)
        return [ref for ref in own if ref.name not in self.names]


class Store(JobControl):
    """Jobs, attempts and slots on the bus. `by` names the writer in the history (role:name)."""

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

    def note_restored(self, job_id: str, number: int, name: str | None, step: int | None, lying: Lying | None) -> Job:
        """The attempt goes on from this checkpoint; those that were pruned or removed leave the record."""
        facts = {"resumed_from": name, "resumed_step": step}
        return self._note_checkpoints(job_id, number, EventKind.RESTORED, "restored", lying, always=True, **facts)

    def note_pruned(self, job_id: str, number: int, lying: Lying) -> Job:
        """The attempt's last checkpoint is told: what it has pruned since leaves the record."""
        return self._note_checkpoints(job_id, number, EventKind.NOTE, "checkpoints pruned", lying, always=False)

    def _note_checkpoints(
        self, job_id: str, number: int, kind: EventKind, cause: str, lying: Lying | None, *, always: bool, **facts: Any
    ) -> Job:
        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            gone = lying.gone(job) if lying is not None else []
            if len(gone) == len(job.checkpoints):
                gone = []  # a folder that was moved away: with an empty record the next attempt would start over
            if not always and (not gone or attempt.state is AttemptState.ENDED):
                return None
            if attempt.state is AttemptState.ENDED:
                raise Fenced(f"attempt {number} of {job_id!r} has ended already")
            known = {name: value for name, value in facts.items() if name in Attempt.__dataclass_fields__}
            event = self.job_event(job, kind, now, cause=cause, gone=_names(gone), **facts)
            return Change(job=_without(job, gone), attempt=replace(attempt, **known), events=(event,))

        return self._change_attempt(job_id, number, decide)

    def note_damaged(
        self, job_id: str, number: int, name: str, why: str | None, *, adopted: int | None = None, again: bool = False
    ) -> Job:
        """A checkpoint could not be used: it leaves the record, so that a newer one is one that can be.

        `adopted` is its step, where it is the copy of one that lies in another job's folder. `again`: it has been told.
        """

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            gone = [
                ref
                for ref in job.checkpoints
                if (ref.name == name if ref.job is None else adopted is not None and ref.step == adopted)
            ]
            if again and (not gone or attempt.state is AttemptState.ENDED):
                return None
            if attempt.state is AttemptState.ENDED:
                raise Fenced(f"attempt {number} of {job_id!r} has ended already")
            facts = {"name": name, "why": why, "gone": _names(gone)}
            event = self.job_event(job, EventKind.NOTE, now, cause="checkpoint damaged", **facts)
            return Change(job=_without(job, gone), attempt=attempt, events=(event,))

        return self._change_attempt(job_id, number, decide)

    def accept_checkpoint(self, job_id: str, number: int, checkpoint: CheckpointRef, lying: Lying | None = None) -> Job:
        """Make a written checkpoint the one to resume from; a newer one restores the retry budget.

        Those that are not there any more leave the record; `lying` is None where nobody could look.
        """

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if any(known.name == checkpoint.name and known.job is None for known in job.checkpoints):
                return None
            if attempt.state is AttemptState.ENDED:
                raise Fenced(f"attempt {number} of {job_id!r} has ended already: its checkpoint is not taken")
            stamped = replace(checkpoint, at_ms=now)
            gone = lying.gone(job) if lying is not None else []
            held = _without(job, gone).checkpoints
            progress = checkpoint.step > (held[0].step if held else 0)
            kept = tuple(sorted((stamped, *held), key=lambda c: (c.step, c.attempt), reverse=True))
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
            event = self.job_event(job, EventKind.CHECKPOINT, now, gone=_names(gone), **facts)
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
            detail = FREE_SLOT if job.state is JobState.QUEUED else job.detail  # it had not been claimed
            new = replace(job, slot=None, reason=outcome.reason, ran_ms=job.ran_ms + ran, detail=detail)
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

    def refuse_pause(self, job_id: str, number: int, why: str) -> Job:
        """Its worker says that the running attempt cannot pause: the job runs on."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if job.state is not JobState.PAUSING:
                return None
            return self.moved(job, JobState.RUNNING, now, cause="pause refused", detail=why)

        return self._change_attempt(job_id, number, decide)


def _without(job: Job, gone: Collection[CheckpointRef]) -> Job:
    return replace(job, checkpoints=tuple(ref for ref in job.checkpoints if ref not in gone)) if gone else job


def _names(refs: Collection[CheckpointRef]) -> list[str] | None:
    return [ref.name for ref in refs] or None
