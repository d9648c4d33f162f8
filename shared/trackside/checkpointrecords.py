"""Which checkpoints a job's record names: each is accepted once it is whole, and leaves when it is found gone.

From this record the next attempt goes on, and progress is counted by it. So it names what is there: whoever carries an
attempt looks into the folder each time that the run tells of a checkpoint, and what was pruned, moved away or damaged
leaves in the same change. The events tell both, so that the history folds to the record.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from trackside.jobcontrol import JobControl
from trackside.jobstore import Change, check_open, with_facts
from trackside.models import Attempt, AttemptState, CheckpointRef, EventKind, Job

CHECKPOINTS_KEPT: Final = 10  # names on the record; the run decides how many directories it keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class OnDisk:
    """What is in a job's folder of checkpoints, as whoever looked there saw it."""

    storage: str
    names: Collection[str]

    def gone(self, job: Job) -> list[CheckpointRef]:
        """Those on the record that were there and are not; what lies elsewhere is not judged."""
        own = (ref for ref in job.checkpoints if ref.job is None and ref.storage == self.storage)
        return [ref for ref in own if ref.name not in self.names]


class CheckpointRecords(JobControl):
    """The checkpoints on the records of jobs; `on_disk` is None where nobody could look."""

    def accept_checkpoint(
        self, job_id: str, number: int, checkpoint: CheckpointRef, on_disk: OnDisk | None = None
    ) -> Job:
        """Make a written checkpoint the one to resume from; a newer one restores the retry budget."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            if any(known.name == checkpoint.name and known.job is None for known in job.checkpoints):
                return None
            check_open(attempt)
            stamped = replace(checkpoint, at_ms=now)
            gone = on_disk.gone(job) if on_disk is not None else []
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

    def note_restored(
        self, job_id: str, number: int, name: str | None, step: int | None, on_disk: OnDisk | None
    ) -> Job:
        """The attempt goes on from this checkpoint; those that were pruned or removed leave the record."""
        facts = {"resumed_from": name, "resumed_step": step}
        gone = _pruned(on_disk)
        return self._note(job_id, number, EventKind.RESTORED, "restored", gone, always=True, facts=facts)

    def note_pruned(self, job_id: str, number: int, on_disk: OnDisk) -> Job:
        """The attempt's last checkpoint is told: what it has pruned since leaves the record."""
        cause = "checkpoints pruned"
        return self._note(job_id, number, EventKind.NOTE, cause, _pruned(on_disk), always=False, facts={})

    def note_damaged(
        self, job_id: str, number: int, name: str, why: str | None, *, adopted: int | None = None, again: bool = False
    ) -> Job:
        """A checkpoint could not be used: it leaves the record, so that a newer one is one that can be.

        `adopted` is its step, where it is the copy of one that lies in another job's folder. `again`: it has been told.
        """

        def gone(job: Job) -> list[CheckpointRef]:
            return [
                ref
                for ref in job.checkpoints
                if (ref.name == name if ref.job is None else adopted is not None and ref.step == adopted)
            ]

        facts = {"name": name, "why": why}
        return self._note(job_id, number, EventKind.NOTE, "checkpoint damaged", gone, always=not again, facts=facts)

    def _note(
        self,
        job_id: str,
        number: int,
        kind: EventKind,
        cause: str,
        gone: Callable[[Job], list[CheckpointRef]],
        *,
        always: bool,
        facts: dict[str, Any],
    ) -> Job:
        """Tell `facts`, and take what is gone off the record; not `always`: only where something is."""

        def decide(job: Job, attempt: Attempt, now: int) -> Change | None:
            left = gone(job)
            if not always and (not left or attempt.state is AttemptState.ENDED):
                return None
            check_open(attempt)
            event = self.job_event(job, kind, now, cause=cause, gone=_names(left), **facts)
            return Change(job=_without(job, left), attempt=with_facts(attempt, facts), events=(event,))

        return self._change_attempt(job_id, number, decide)


def _pruned(on_disk: OnDisk | None) -> Callable[[Job], list[CheckpointRef]]:
    """Who is gone, but not if all are: a folder that was moved away would let the next attempt start over."""

    def gone(job: Job) -> list[CheckpointRef]:
        found = on_disk.gone(job) if on_disk is not None else []
        return found if len(found) < len(job.checkpoints) else []

    return gone


def _without(job: Job, gone: Collection[CheckpointRef]) -> Job:
    return replace(job, checkpoints=tuple(ref for ref in job.checkpoints if ref not in gone)) if gone else job


def _names(refs: Collection[CheckpointRef]) -> list[str] | None:
    return [ref.name for ref in refs] or None
