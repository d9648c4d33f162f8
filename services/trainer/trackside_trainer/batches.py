"""Journal records to columns: what goes to the bus as one entry of a metrics stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from trackside.codec import number_or_name
from trackside.models import Batch

MAX_RECORDS: Final = 2_000
MAX_BYTES: Final = 256 * 1024
MAX_WHOLE: Final = 2**53  # JSON readers elsewhere lose digits beyond it
_MAX_CELLS: Final = 50_000  # each point may bring new names: without a bound the columns grow with the square
_MAX_NAME: Final = 200
_NO_NUMBERS: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_MAX_SUMMARY_BYTES: Final = 64 * 1024


class BatchBuilder:
    """Collects records until one of the bounds is reached."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._at_ms: list[int] = []
        self._series: dict[str, list[float | str | None]] = {}
        self._in_row: set[str] = set()  # names that the newest point has
        self._total: int | None = None
        self._summary: dict[str, Any] = {}

    @property
    def full(self) -> bool:
        points = len(self._steps)
        return points >= MAX_RECORDS or (points + 1) * (len(self._series) + 1) > _MAX_CELLS

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record over; one that is no point, total or summary adds nothing."""
        kind = record["k"]
        if kind == "m":
            self._add_point(record.get("s"), record.get("t"), record.get("m"))
        elif kind == "begin":
            self._total = whole(record.get("total"))
        elif kind == "summary" and isinstance(record.get("m"), dict):
            self._summary.update(bounded(record["m"]))

    def build(self) -> Batch:
        """The batch of all that was added."""
        return Batch(
            steps=tuple(self._steps),
            at_ms=tuple(self._at_ms),
            series={name: tuple(column) for name, column in self._series.items()},
            total=self._total,
            summary=self._summary,
        )

    def _add_point(self, step: Any, at_ms: Any, values: Any) -> None:
        if whole(step) is None or whole(at_ms) is None or not isinstance(values, dict):
            return
        points = {_short(name): point for name, value in values.items() if (point := _point(value)) is not None}
        # A step that is logged in several calls is one point, or a hundred names would make ten thousand cells.
        if not self._steps or self._steps[-1] != step or not self._in_row.isdisjoint(points):
            self._steps.append(step)
            self._at_ms.append(at_ms)
            self._in_row = set()
            for column in self._series.values():
                column.append(None)
        for name, point in points.items():
            self._series.setdefault(name, [None] * len(self._steps))[-1] = point
        self._in_row |= points.keys()


def whole(value: Any) -> int | None:
    """A whole number that every reader can hold, else None."""
    return value if type(value) is int and abs(value) <= MAX_WHOLE else None


def _short(name: str) -> str:
    """A name as it is, or cut to the bound with a digest, since the names of a model's parts begin alike."""
    if len(name) <= _MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: _MAX_NAME - len(digest) - 1]}~{digest}"


def _point(value: Any) -> float | str | None:
    if isinstance(value, str):
        return value if value in _NO_NUMBERS else None
    if not isinstance(value, int | float):
        return None
    try:
        return number_or_name(float(value))
    except OverflowError:
        return "Infinity" if value > 0 else "-Infinity"


def bounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Results fit for the bus: short names, and what is too large or cannot be carried is replaced by a word on it."""
    kept: dict[str, Any] = {}
    for name, value in list(values.items())[:MAX_RECORDS]:
        try:
            size = len(orjson.dumps(value))
        except TypeError:
            kept[_short(str(name))] = "(left out: no JSON)"
            continue
        kept[_short(str(name))] = value if size <= _MAX_SUMMARY_BYTES else f"(left out: {size} bytes)"
    return kept
