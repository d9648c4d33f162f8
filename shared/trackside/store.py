"""Jobs, attempts and slots on the bus: one class for all that reads and changes them, and here the life of an attempt.

The records are written here and below (`checkpointrecords.py`, `jobcontrol.py`, `jobstore.py`, `slotstore.py`), by
`restoring.py` where a server lost them, and nowhere else; all of them in the one way that `records.py` has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trackside.bus import streams
from trackside.bus.client import Pipeline
from trackside.checkpointrecords import CheckpointRecords
from trackside.errors import Fenced
from trackside.jobstore import Change, check_not_behind, check_open, with_facts
from trackside.line import FREE_SLOT
from trackside.models import Attempt, AttemptState, EventKind, Job, JobState, Outcome, Slot

__all__ = ["Change", "Store", "check_not_behind"]


class Store(CheckpointRecords):
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
            check_open(attempt)
            event = self.job_event(job, kind, now, cause=cause, **facts)
            return Change(job=job, attempt=with_facts(attempt, facts), events=(event,))

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
