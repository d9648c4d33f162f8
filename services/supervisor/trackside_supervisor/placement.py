"""Which queued job goes to which free slot: pure.

Each placement is told with what it was chosen by: the job's place in line, those passed over before it, the next one
behind it, and the slots looked at, so that `replay` makes the same choice again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple

from trackside.line import RANKS, blocked_by
from trackside.models import Beat, Breaker, BreakerState, Job, JobState, Role, Slot
from trackside_supervisor.breaker import takes

_PASSED_TOLD: Final = 3  # jobs and slots passed over that are told with a placement, those nearest to it


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What placement looks at in a queued job. A new field needs a default."""

    id: str
    priority: str
    created_at_ms: int
    device: str = "any"
    slot: str | None = None  # the only one it may run on
    storage: str | None = None  # where its newest checkpoint can be read

    @classmethod
    def of(cls, job: Job) -> Need:
        spec, newest = job.spec, job.checkpoints[0] if job.checkpoints else None
        return cls(
            id=job.id, priority=spec.priority, created_at_ms=job.created_at_ms, device=spec.device, slot=spec.slot,
            storage=newest.storage if newest is not None else None,
        )  # fmt: skip

    def order(self) -> tuple[int, int, str]:
        """Its place in line."""
        return RANKS[self.priority], self.created_at_ms, self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What placement looks at in a free slot. A new field needs a default."""

    id: str
    kind: str
    storage: str
    breaker: BreakerState = BreakerState.CLOSED
    probe: str | None = None  # the self-test's job, while the breaker lets nothing else in

    @classmethod
    def of(cls, slot: Slot, breaker: Breaker | None) -> Offer:
        state = breaker.state if breaker is not None else BreakerState.CLOSED
        probe = breaker.probe if breaker is not None else None
        return cls(id=slot.id, kind=slot.kind, storage=slot.storage, breaker=state, probe=probe)


class Placed(NamedTuple):
    """A job, the slot that it is given to, and what that was decided by."""

    job: Job
    slot: Slot
    inputs: dict[str, Any]


def free_slots(slots: Iterable[Slot], jobs: Iterable[Job], beats: Mapping[str, Beat | None]) -> list[Slot]:
    """Slots with a living worker, in service, given to no job, and on a GPU slot with a GPU that is free."""
    taken = {job.slot for job in jobs if job.slot is not None}
    return [slot for slot in slots if not slot.cordoned and slot.id not in taken and _serves(slot, beats)]


def place(jobs: Iterable[Job], free: Iterable[Slot], breakers: Mapping[str, Breaker] | None = None) -> list[Placed]:
    """Who goes where, by priority, then age; a job with checkpoints goes only where they can be read.

    A slot whose breaker is not closed takes nothing but its self-test.
    """
    jobs_by_id = {job.id: job for job in jobs if job.state is JobState.QUEUED and job.slot is None}
    slots = {slot.id: slot for slot in free}
    line = sorted((Need.of(job) for job in jobs_by_id.values()), key=Need.order)
    left = [Offer.of(slot, (breakers or {}).get(slot.id)) for slot in slots.values()]
    placed: list[Placed] = []
    passed: list[Need] = []
    for at, need in enumerate(line):
        offer = next((offer for offer in left if fits(need, offer)), None)
        if offer is None:
            passed.append(need)
            continue
        looked_at = left[: left.index(offer) + 1]
        inputs = {
            "line": [_brief(each) for each in (*passed[-_PASSED_TOLD:], need, *line[at + 1 : at + 2])],
            "offers": [_brief(each) for each in looked_at[-_PASSED_TOLD - 1 :]],
            "queued": len(line) - len(placed),
            "free": len(left),
        }
        left.remove(offer)
        placed.append(Placed(jobs_by_id[need.id], slots[offer.id], inputs))
    return placed


def replay(inputs: Mapping[str, Any]) -> tuple[str, str] | None:
    """The job and the slot that these recorded inputs lead to: the first in line that any of the slots fits."""
    offers = [Offer(**{**each, "breaker": BreakerState(each.get("breaker", "closed"))}) for each in inputs["offers"]]
    for need in sorted((Need(**each) for each in inputs["line"]), key=Need.order):
        for offer in offers:
            if fits(need, offer):
                return need.id, offer.id
    return None


def fits(need: Need, offer: Offer) -> bool:
    """Whether the job may run on the slot."""
    if need.device not in ("any", offer.kind) or need.slot not in (None, offer.id):
        return False
    if not takes(Breaker(slot=offer.id, state=offer.breaker, probe=offer.probe), need.id):
        return False
    return need.storage in (None, offer.storage)


def _brief(each: Need | Offer) -> dict[str, Any]:
    """A need or an offer as it is recorded: what is not the default."""
    given = asdict(each)
    return {field.name: given[field.name] for field in fields(each) if given[field.name] != field.default}


def _serves(slot: Slot, beats: Mapping[str, Beat | None]) -> bool:
    """Whether the slot takes work and its worker lives; a silent agent says nothing, since workers outlive it."""
    worker, agent = beats.get(f"{Role.WORKER}:{slot.id}"), beats.get(f"{Role.AGENT}:{slot.host}")
    if worker is None or worker.stopping or blocked_by(slot, worker) is not None:
        return False
    return agent is None or not agent.stopping
