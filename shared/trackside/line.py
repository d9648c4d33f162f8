"""The line of jobs that wait for a slot: who is in it, who is before whom, and which slots take nobody. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from trackside.models import Beat, Job, JobState, Role, Slot

RANKS: Final = {"high": 0, "normal": 1, "low": 2}
FREE_SLOT: Final = "waits for a free slot"


def is_in_line(job: Job) -> bool:
    """Whether the next free slot that fits may be this job's; one that others hold up is not in line yet."""
    waits = bool(job.spec.after) and job.attempt == 0 and job.detail != FREE_SLOT
    return job.state is JobState.QUEUED and job.slot is None and not waits


def places(jobs: Iterable[Job]) -> dict[str, int]:
    """The place of each job in line, from 1: by priority, then age. What device a job asks for makes no difference."""
    line = sorted(filter(is_in_line, jobs), key=lambda job: (RANKS[job.spec.priority], job.created_at_ms, job.id))
    return {job.id: place for place, job in enumerate(line, start=1)}


def blocked_by(slot: Slot, beat: Beat | None) -> str | None:
    """What keeps a slot from work, as its agent sees its GPU and its worker its disk; None: nothing."""
    return "; ".join(filter(None, (slot.blocked, None if beat is None else beat.blocked))) or None


def unfit(job: Job, kinds: Collection[str]) -> str | None:
    """That a job in line waits for a kind of slot of which none is there; None: one is, or it takes any."""
    wanted = job.spec.device
    if wanted == "any" or wanted in kinds or not is_in_line(job):
        return None
    return f"no {wanted.upper()} slot is there"


def unled(beats: Mapping[str, Beat | None]) -> str | None:
    """That nothing is given out or decided, and what to look at; None where a supervisor leads."""
    heard = [beat for beat in beats.values() if beat is not None and beat.role is Role.SUPERVISOR]
    if any(beat.leader for beat in heard):
        return None
    return f"no supervisor {'leads' if heard else 'is heard'}: nothing is given out; see `trackside ps`"


def words(place: int) -> str:
    """`next in line`, `2nd in line`."""
    if place == 1:
        return "next in line"
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending} in line"
