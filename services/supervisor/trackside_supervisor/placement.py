"""Which queued job goes to which free slot: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from trackside.models import Beat, Breaker, Job, JobState, Role, Slot
from trackside_supervisor.breaker import takes

RANKS: Final = {"high": 0, "normal": 1, "low": 2}


def free_slots(slots: Iterable[Slot], jobs: Iterable[Job], beats: Mapping[str, Beat | None]) -> list[Slot]:
    """Slots with a living worker, in service, and given to no job."""
    taken = {job.slot for job in jobs if job.slot is not None}
    return [slot for slot in slots if slot.id not in taken and not slot.cordoned and _serves(slot, beats)]


def place(
    jobs: Iterable[Job], free: Iterable[Slot], breakers: Mapping[str, Breaker] | None = None
) -> list[tuple[Job, Slot]]:
    """Pairs of job and slot, by priority, then age; a job with checkpoints goes only where they can be read.

    A slot whose breaker is not closed takes nothing but its self-test.
    """
    left = list(free)
    pairs: list[tuple[Job, Slot]] = []
    waiting = (job for job in jobs if job.state is JobState.QUEUED and job.slot is None)
    for job in sorted(waiting, key=lambda job: (RANKS[job.spec.priority], job.created_at_ms, job.id)):
        slot = next((slot for slot in left if _fits(job, slot, (breakers or {}).get(slot.id))), None)
        if slot is not None:
            left.remove(slot)
            pairs.append((job, slot))
    return pairs


def _serves(slot: Slot, beats: Mapping[str, Beat | None]) -> bool:
    """Whether the slot's worker lives and takes work; a silent agent says nothing, since workers outlive it."""
    worker, agent = beats.get(f"{Role.WORKER}:{slot.id}"), beats.get(f"{Role.AGENT}:{slot.host}")
    return worker is not None and not worker.stopping and (agent is None or not agent.stopping)


def _fits(job: Job, slot: Slot, breaker: Breaker | None) -> bool:
    if job.spec.device not in ("any", slot.kind) or job.spec.slot not in (None, slot.id) or not takes(breaker, job.id):
        return False
    return not job.checkpoints or job.checkpoints[0].storage == slot.storage
