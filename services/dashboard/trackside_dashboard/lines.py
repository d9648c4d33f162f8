"""Metrics as columns: what a job wrote, kept in stream order, and the one curve it makes.

Where steps were redone after a resume, each step takes the highest attempt's value. A stream's attempts never go back,
so that is simply the last value written.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trackside.models import Batch

POINTS_MAX: Final = 200_000  # of one line: 8 MB; a longer one loses what was redone and is thinned to half, spikes kept
LINES_MAX: Final = 200  # of one job; a name made anew at every step must not fill the memory
_FIRST: Final = 64
_NAMED: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Points of one metric, all columns of one length."""

    steps: Ints
    at_ms: Ints
    attempts: Ints
    values: Floats
    thinned: bool = False  # it holds fewer points than were written

    def __len__(self) -> int:
        return len(self.steps)


class Column:
    """Points of one metric as they come; grows by doubling, so that a `Line` given out never changes."""

    def __init__(self) -> None:
        self._ints = np.empty((4, _FIRST), dtype=np.int64)  # step, time, attempt, how many came before
        self._values = np.empty(_FIRST, dtype=np.float64)
        self._used = 0
        self._seen = 0

    def add(self, step: int, at_ms: int, attempt: int, value: float) -> None:
        if self._used == len(self._values):
            self._grow()
        self._ints[:, self._used] = step, at_ms, attempt, self._seen
        self._values[self._used] = value
        self._used += 1
        self._seen += 1

    def line(self) -> Line:
        steps, at_ms, attempts, _ = self._ints[:, : self._used]
        thinned = self._used < self._seen
        return Line(steps=steps, at_ms=at_ms, attempts=attempts, values=self._values[: self._used], thinned=thinned)

    def newest(self) -> float | None:
        return float(self._values[self._used - 1]) if self._used else None

    def _grow(self) -> None:
        if self._used >= POINTS_MAX:
            # a superseded point would show again once the one that supersedes it is thinned away
            keep = np.sort(_standing(self._ints[0]))
            # by what came, not by what is left: parts thinned before would be thinned again each time
            keep = keep[kept(self._values[keep], POINTS_MAX // 2, self._ints[3, keep])]
            self._ints, self._values = self._ints[:, keep], self._values[keep]
            self._used = len(keep)
        room = min(2 * self._used, POINTS_MAX)
        ints = np.empty((4, room), dtype=np.int64)
        values = np.empty(room, dtype=np.float64)
        ints[:, : self._used], values[: self._used] = self._ints[:, : self._used], self._values[: self._used]
        self._ints, self._values = ints, values


class Columns:
    """All metrics of one job."""

    def __init__(self) -> None:
        self.by_name: dict[str, Column] = {}
        self.step: int | None = None
        self.total: int | None = None
        self.summary: dict[str, Any] = {}
        self.left_out = 0  # values of metrics beyond LINES_MAX

    def add(self, attempt: int, batch: Batch) -> None:
        """Take in one batch; a gap stays out, what is no number stays in as such."""
        self.total = batch.total if batch.total is not None else self.total
        self.step = batch.steps[-1] if batch.steps else self.step
        self.summary.update(batch.summary)
        for name, values in batch.series.items():
            column = self.by_name.get(name)
            if column is None:
                if len(self.by_name) >= LINES_MAX:
                    self.left_out += sum(value is not None for value in values)
                    continue
                column = self.by_name[name] = Column()
            for step, at_ms, value in zip(batch.steps, batch.at_ms, values, strict=False):
                if value is not None:
                    number = _NAMED.get(value, float("nan")) if isinstance(value, str) else value
                    column.add(step, at_ms, attempt, number)

    def lines(self) -> dict[str, Line]:
        return {name: column.line() for name, column in self.by_name.items()}


def canonical(line: Line) -> Line:
    """One point a step, the highest attempt's, in the order of steps."""
    if len(line) < 2 or bool(np.all(line.steps[1:] > line.steps[:-1])):
        return line
    return taken(line, _standing(line.steps))


def _standing(steps: Ints) -> NDArray[np.intp]:
    """Places of the last point of each step, in the order of steps."""
    order: NDArray[np.intp] = np.argsort(steps, kind="stable")  # quick where nearly all is in order already
    ordered = steps[order]
    newest: NDArray[np.bool_] = np.append(ordered[1:] != ordered[:-1], True)
    return order[newest]


def taken(line: Line, index: NDArray[np.intp]) -> Line:
    """The points at these places."""
    return Line(
        steps=line.steps[index],
        at_ms=line.at_ms[index],
        attempts=line.attempts[index],
        values=line.values[index],
        thinned=line.thinned,
    )


def kept(values: Floats, limit: int, at: Ints | None = None) -> NDArray[np.intp]:
    """Places of at most `limit` points that draw the same picture: of each bucket its first, lowest, highest and last.

    Buckets are equally wide on `at`, where the points lie in ascending order; by default each holds as many points.
    Points that are no number are kept while they are few, since one of them is news.
    """
    size = len(values)
    if size <= limit:
        return np.arange(size, dtype=np.intp)
    odd = np.flatnonzero(~np.isfinite(values))
    odd = odd[:: max(1, -(-len(odd) // max(1, limit // 10)))]
    buckets = max(1, (limit - len(odd)) // 4)
    if at is None:
        at = np.arange(size)
    edges = np.searchsorted(at, np.linspace(at[0], at[-1], buckets + 1))
    edges[0], edges[-1] = 0, size
    low = np.where(np.isfinite(values), values, np.inf)
    high = np.where(np.isfinite(values), values, -np.inf)
    places = [
        place
        for start, end in pairwise(edges)
        if end > start
        for place in (start, start + int(low[start:end].argmin()), start + int(high[start:end].argmax()), end - 1)
    ]
    return np.unique(np.concatenate([np.asarray(places, dtype=np.intp), odd]))
