"""The canonical series of a job: for each step of each series the value of the highest attempt that logged it.

A job that resumed redoes steps; readers want every step once, and the redone value is the one the rest builds on.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from trackside.models import Batch

Point = tuple[int, float, int]  # step, value, attempt
_NAMED: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(kw_only=True, slots=True)
class Columns:
    """One series, its points in the order of their steps, 20 bytes a point; do not change these arrays."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    attempts: array[int] = field(default_factory=lambda: array("i"))

    def __iter__(self) -> Iterator[Point]:
        return zip(self.steps, self.values, self.attempts, strict=True)

    def __len__(self) -> int:
        return len(self.steps)

    def put(self, step: int, value: float, attempt: int) -> None:
        """Add a point, or take the place of one that an older attempt, or this one earlier, logged for the step."""
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            self.values.append(value)
            self.attempts.append(attempt)
            return
        at = bisect_left(self.steps, step)
        if self.steps[at] != step:
            self.steps.insert(at, step)
            self.values.insert(at, value)
            self.attempts.insert(at, attempt)
        elif attempt >= self.attempts[at]:
            self.values[at] = value
            self.attempts[at] = attempt


class Series:
    """The canonical series, kept up to date batch by batch, in any order of attempts."""

    def __init__(self) -> None:
        self.columns: dict[str, Columns] = {}
        self.total: int | None = None  # steps in all, as the run last said

    def add(self, attempt: int, batch: Batch) -> None:
        """Take in one batch of an attempt; the same batch again changes nothing."""
        if batch.total is not None:
            self.total = batch.total
        for name, values in batch.series.items():
            columns = self.columns.setdefault(name, Columns())
            for step, value in zip(batch.steps, values, strict=False):
                if value is not None:
                    columns.put(step, _NAMED.get(value, math.nan) if isinstance(value, str) else value, attempt)

    def points(self, name: str) -> list[Point]:
        """The points of one series; none for a name never logged."""
        return list(self.columns.get(name, ()))


def canonical(batches: Iterable[tuple[int, Batch]]) -> dict[str, list[Point]]:
    """All series of (attempt, batch) pairs: name to points (step, value, attempt), in the order of their steps."""
    series = Series()
    for attempt, batch in batches:
        series.add(attempt, batch)
    return {name: list(columns) for name, columns in series.columns.items()}
