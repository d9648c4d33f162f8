"""Whether a server has less than it had, and what a job's records must then be: pure.

A server may come back empty, from an older copy, or as a replica that had not taken in everything. What shows it is
that events which were seen on it are gone, or that an attempt's number was given out which it does not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, Final

from trackside.bus import keys
from trackside.codec import encode
from trackside.models import Attempt, AttemptState, CheckpointRef, Event, EventKind, Job, JobState
from trackside.restoring import Held

CANCEL, PAUSE, RESUME = "cancel requested", "pause requested", "resume requested"
_ASKED: Final = (CANCEL, PAUSE, RESUME)
_SHOWN: Final = 10  # jobs that are named in what a verdict was reached by


class Verdict(Enum):
    """What a look at the server says."""

    WHOLE = "whole"  # it has what was seen on it
    TRIMMED = "trimmed"  # it has gone on so far that the last event seen was lawfully cut off
    OLDER = "older"  # it has less than it had


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look found. Attempts are the jobs' newest numbers; None: the job has no record."""

    seen: str | None  # the newest event taken in; None: none ever
    still_there: bool  # whether the server has it
    first: str | None  # the oldest event that the server has
    events: int  # how many it has
    known: Mapping[str, int]  # of the jobs that had not ended when they were last seen
    there: Mapping[str, int | None]

    def inputs(self) -> dict[str, Any]:
        """What the verdict is reached by, to be recorded: of the jobs only such as show that something is missing."""
        behind = [job_id for job_id, number in self.known.items() if _behind(self.there.get(job_id), number)]
        shown = {
            name: {job_id: of[job_id] for job_id in behind[:_SHOWN] if job_id in of}
            for name, of in (("known", self.known), ("there", self.there))
        }
        return {"seen": self.seen, "still_there": self.still_there, "first": self.first, "events": self.events, **shown}

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Look:
        """The look that was recorded."""
        return cls(
            seen=inputs.get("seen"),
            still_there=inputs["still_there"],
            first=inputs.get("first"),
            events=inputs["events"],
            known=inputs["known"],
            there=inputs["there"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """What the server lacks of one job. A new fact needs a default."""

    ours: int  # the newest attempt that the ledger knows
    theirs: int | None = None  # that the server knows; None: it does not know the job
    lost_events: int = 0  # of its history
    led_on: bool = False  # another supervisor has decided about it on that server since

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Gap:
        """The gap that was recorded; what a later version added is passed over."""
        return cls(**{each.name: inputs[each.name] for each in fields(cls) if inputs.get(each.name) is not None})


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged:
    """What a job's records must be, what was missing, and what people asked meanwhile and is to be asked again."""

    held: Held
    more: tuple[Event, ...]  # of the server's own since it came back, in order, after the history
    gap: Gap
    asked: tuple[tuple[str, str], ...] = ()  # what, and by whom


def judge(look: Look) -> Verdict:
    """Compare what was seen with what is there."""
    for job_id, number in look.known.items():
        if _behind(look.there.get(job_id), number):
            return Verdict.OLDER
    if look.seen is None or look.still_there or order(look.seen) == (0, 0):
        return Verdict.WHOLE
    # The stream is cut in whole blocks, so it may stand a little above its bound, never below.
    if look.first is not None and order(look.first) > order(look.seen) and look.events >= keys.EVENTS_MAXLEN:
        return Verdict.TRIMMED
    return Verdict.OLDER


def _behind(there: int | None, number: int) -> bool:
    return there is None or there < number


def is_whole(gap: Gap) -> bool:
    """Whether the server's own records of a job stand: they lack nothing, or have been led on from."""
    if gap.theirs is None or gap.theirs < gap.ours:
        return False
    return gap.lost_events == 0 or gap.led_on


def ahead(there: Mapping[str, int | None], carried: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The jobs of which somebody has a newer attempt than the server knows, with that attempt's number."""
    found: dict[str, int] = {}
    for job_id, number in carried:
        if (there.get(job_id) or 0) < number:
            found[job_id] = max(number, found.get(job_id, 0))
    return found


def merge(ours: Held, theirs: Held | None) -> Merged | None:
    """What a job's records must be; None where the server lacks nothing.

    The ledger's word stands, and on top of it what happened on the server since it came back: an attempt that was
    claimed or ended, a checkpoint, what people asked for.
    """
    if theirs is None:
        gap = Gap(ours=ours.job.attempt, lost_events=len(ours.history))
        return Merged(held=_whole(ours), more=(), gap=gap)
    there, here = ({encode(event) for _, event in side.history} for side in (theirs, ours))
    extra = [event for _, event in theirs.history if encode(event) not in here]
    gap = Gap(
        ours=ours.job.attempt,
        theirs=theirs.job.attempt,
        lost_events=sum(encode(event) not in there for _, event in ours.history),
        led_on=any(_decided(event) for event in extra),
    )
    return None if is_whole(gap) else _with(_whole(ours), theirs, extra, gap)


def _whole(ours: Held) -> Held:
    """With a record of the newest attempt, also where the ledger only saw that its number was given out."""
    job, number = ours.job, ours.job.attempt
    if number == 0 or number in ours.attempts:
        return ours
    made = Attempt(
        job=job.id, number=number, state=AttemptState.ASSIGNED, slot=job.slot or "", host="",
        assigned_at_ms=job.changed_at_ms,
    )  # fmt: skip
    return replace(ours, attempts={**ours.attempts, number: made})


def _with(held: Held, theirs: Held, extra: list[Event], gap: Gap) -> Merged:
    job, attempts = held.job, dict(held.attempts)
    number = job.attempt
    told = [(event.kind, event.attempt, event.cause, event.data) for _, event in held.history]
    more: list[Event] = []
    asked: list[tuple[str, str]] = []
    for event in extra:
        own, their = attempts.get(number), theirs.attempts.get(number)
        if event.cause in _ASKED and event.kind is EventKind.TRANSITION:
            asked.append((event.cause or "", event.by or "cli"))
            continue
        if event.attempt != number or own is None or their is None or own.state is AttemptState.ENDED:
            continue  # of an attempt that is over
        match event.kind:
            case EventKind.STARTED if own.state is AttemptState.ASSIGNED:
                attempts[number] = replace(their, state=AttemptState.RUNNING, ended_at_ms=None, outcome=None)
            case EventKind.TRANSITION if job.state is JobState.QUEUED and event.new is JobState.RUNNING:
                job = replace(
                    job, state=JobState.RUNNING, changed_at_ms=event.at_ms, detail=None,
                    first_started_at_ms=theirs.job.first_started_at_ms,
                )  # fmt: skip
            case EventKind.ENDED:
                attempts[number] = their
                job = replace(job, slot=None, reason=theirs.job.reason, ran_ms=theirs.job.ran_ms)
            case EventKind.CHECKPOINT if not _accepted(held, event):
                job = replace(job, checkpoints=_taken(_left(job, theirs.job, event), theirs.job, event))
            case EventKind.NOTE | EventKind.RESTORED:
                if (event.kind, event.attempt, event.cause, event.data) in told:
                    continue
                job = _left(job, theirs.job, event)
            case _:
                continue
        more.append(event)
    merged = replace(held, job=job, attempts=attempts)
    return Merged(held=merged, more=tuple(more), gap=gap, asked=tuple(asked))


def _decided(event: Event) -> bool:
    """Whether a supervisor moved the job on."""
    by_supervisor = (event.by or "").startswith("supervisor:")
    return by_supervisor and event.kind in (EventKind.TRANSITION, EventKind.ASSIGNED, EventKind.ENDED)


def _accepted(held: Held, event: Event) -> bool:
    return any(
        old.kind is EventKind.CHECKPOINT and old.data.get("name") == event.data.get("name") for _, old in held.history
    )


def _taken(job: Job, theirs: Job, event: Event) -> tuple[CheckpointRef, ...]:
    new = [ref for ref in theirs.checkpoints if ref.name == event.data.get("name") and ref.job is None]
    return tuple(sorted((*new, *job.checkpoints), key=lambda ref: (ref.step, ref.attempt), reverse=True))


def _left(job: Job, theirs: Job, event: Event) -> Job:
    """Without the checkpoints that were found pruned or damaged."""
    gone, there = event.data.get("gone") or (), {(ref.name, ref.job) for ref in theirs.checkpoints}
    kept = tuple(ref for ref in job.checkpoints if ref.name not in gone or (ref.name, ref.job) in there)
    return replace(job, checkpoints=kept)


def number(raw: bytes | None, *, otherwise: int | None) -> int | None:
    """An attempt's number as it stands on the server, None where there is none; `otherwise` for what is no number."""
    if raw is None:
        return None
    return int(raw) if raw.isdigit() else otherwise


def order(entry: str) -> tuple[int, int]:
    """An event's id as it sorts."""
    at_ms, _, sequence = entry.partition("-")
    return int(at_ms), int(sequence)
