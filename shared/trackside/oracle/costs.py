"""What a run gave and what a fault cost it, read off its history. Nothing is judged here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trackside.models import Attempt, EventKind, JobState, Reason
from trackside.oracle.history import JobHistory, Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a fault cost a job. Times in s after it; None where the job went on without an end of its attempt."""

    noticed_s: float | None
    stepping_s: float | None  # until the first point logged after it, of a new attempt if there was one
    redone: int
    lost: int  # steps of the undisturbed run that are not there
    doubled: int  # points and starts that are there twice


def measure(each: JobHistory, fault_ms: int) -> Cost:
    """What a fault at `fault_ms` (the server's clock, on one host with the run) cost this job."""
    ended = [event for event in each.events if event.kind is EventKind.ENDED and event.at_ms >= fault_ms]
    hit = ended[0] if ended and ended[0].cause != Reason.SUCCEEDED else None
    times = [
        at_ms
        for entry in each.entries
        if entry.batch is not None and (hit is None or entry.attempt > (hit.attempt or 0))
        for at_ms in entry.batch.at_ms
        if at_ms >= fault_ms
    ]
    expected = (each.expected.series or {}) if each.job.state is JobState.SUCCEEDED else {}
    found = canonical(each)
    starts = Counter(event.attempt for event in each.events if event.kind is EventKind.STARTED)
    there = points(each)
    return Cost(
        noticed_s=(hit.at_ms - fault_ms) / 1000 if hit is not None else None,
        stepping_s=(min(times) - fault_ms) / 1000 if times else None,
        redone=sum(steps for _, _, steps in redone(each)),
        lost=max((len(steps.keys() - found.get(name, {}).keys()) for name, steps in expected.items()), default=0),
        doubled=sum(there.values()) - len(there) + sum(starts.values()) - len(starts),
    )


def redone(each: JobHistory) -> Iterator[tuple[Attempt, Attempt, int]]:
    """Each attempt that another followed, that other one, and how many steps were done again."""
    logged: dict[int, int] = {}
    for entry in each.entries:
        if entry.batch is not None and entry.batch.steps:
            logged[entry.attempt] = max(logged.get(entry.attempt, 0), *entry.batch.steps)
    for before, after in zip(each.attempts, each.attempts[1:], strict=False):
        told = before.outcome.last_step if before.outcome else None
        last = max(told or 0, logged.get(before.number, 0))
        began = after.resumed_step is not None or after.number in logged
        if last and began:
            yield before, after, max(0, last - (after.resumed_step or 0))


def canonical(each: JobHistory) -> dict[str, dict[int, Value]]:
    """Each series with one value a step, the highest attempt's."""
    found: dict[str, dict[int, tuple[int, Value]]] = {}
    for entry in each.entries:
        if entry.batch is None:
            continue
        for name, values in entry.batch.series.items():
            series = found.setdefault(name, {})
            for step, value in zip(entry.batch.steps, values, strict=False):
                if value is not None and entry.attempt >= series.get(step, (0, 0.0))[0]:
                    series[step] = (entry.attempt, value)
    return {name: {step: series[step][1] for step in sorted(series)} for name, series in found.items()}


def summary(each: JobHistory) -> dict[str, Any]:
    """The run's results, as logged last."""
    merged: dict[str, Any] = {}
    for entry in each.entries:
        if entry.batch is not None:
            merged.update(entry.batch.summary)
    return merged


def step_s(each: JobHistory) -> float | None:
    """How long a step took on average; None where fewer than two were logged."""
    times = [at_ms for entry in each.entries if entry.batch is not None for at_ms in entry.batch.at_ms]
    return (max(times) - min(times)) / 1000 / (len(times) - 1) if len(times) > 1 else None


def points(each: JobHistory) -> Counter[tuple[str, int, int]]:
    """How often each (series, attempt, step) is there."""
    return Counter(
        (name, entry.attempt, step)
        for entry in each.entries
        if entry.batch is not None
        for name, values in entry.batch.series.items()
        for step, value in zip(entry.batch.steps, values, strict=False)
        if value is not None
    )


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same; not-a-number is the same as itself."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)
