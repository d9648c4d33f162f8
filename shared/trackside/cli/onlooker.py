"""Who looks on while a fault is done: an observer, a calm job beside the harmed one, and what was held before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trackside import witness
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.models import Reason
from trackside.oracle import Expected, Holdings, Sample

if TYPE_CHECKING:
    from trackside.cli.faults import Fault
    from trackside.cli.rehearse import Baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class Onlooker:
    """What is seen beside the harm itself."""

    observer: witness.Observer
    before: Holdings
    bystander: str | None = None  # a job that nothing is done to

    @property
    def beside(self) -> list[str]:
        return [] if self.bystander is None else [self.bystander]


@contextmanager
def onlooker(system: Throwaway, job_id: str, *, bystander: bool) -> Iterator[Onlooker]:
    """Look on until the block ends; a bystander is the same job once more, submitted at once after it."""
    calm_id = system.again(system.job(job_id)) if bystander else None
    before = held(system, [])
    wanted = [job_id, *([calm_id] if calm_id is not None else [])]
    with witness.observed(system.store, system.home, wanted) as observer:
        yield Onlooker(observer=observer, before=before, bystander=calm_id)


def held(system: Throwaway, job_ids: list[str]) -> Holdings:
    """What services, streams and disk hold now."""
    return system.ask(lambda: witness.holdings(system.store, system.home, job_ids, now_ms()))


def facts(system: Throwaway, seen: Onlooker, job_id: str, samples: list[Sample]) -> dict[str, Any]:
    """What was seen, also by the fault itself, as fields of a History; once every job has ended."""
    partial = [replace(look, partial=True) for look in samples]  # two threads' looks are in no order to a millisecond
    return {
        "samples": tuple(sorted([*seen.observer.samples, *partial], key=lambda look: look.at_ms)),
        "holdings": (seen.before, held(system, [job_id, *seen.beside])),
    }


def calm(base: Baseline, fault: Fault) -> Expected:
    """What a job is to be like that nothing is done to; its pace only where the clocks are right."""
    return Expected(
        states=frozenset({base.job.state}), attempts_max=1, series=base.series, summary=base.summary,
        step_s=base.step_s if fault.stepping_max_s is not None else None, bystander=True, due=frozenset(),
    )  # fmt: skip


def due(fault: Fault, ended_well: bool) -> frozenset[Reason] | None:
    """All that an attempt may end with under a fault, where the fault says it of each; None where it does not."""
    if not ended_well or fault.attempts_max > len(fault.reasons) + 1:
        return None
    return frozenset[Reason]().union(*fault.reasons)
