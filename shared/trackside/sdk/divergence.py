"""Notices that training has diverged: a watched metric that stays NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from trackside.errors import Diverged

DEFAULT: Final = ("loss",)
LIMIT: Final = 3  # logged steps in a row: one alone may be a single bad batch that the optimizer skips


class Watch:
    """Follows the watched metrics, as they are written to the journal."""

    def __init__(self, names: Sequence[str] = DEFAULT) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"watch is {names!r}: give names of metrics, such as watch=('loss',), or () for none")
        self.names = tuple(names)
        self.verdict: Diverged | None = None
        self._runs: dict[str, list[int]] = {}  # metric -> steps in a row at which it was no finite number
        self._last: dict[str, int] = {}
        self._gap = 1  # the longest way between two steps at which a watched metric was logged

    def see(self, step: int, values: Mapping[str, Any]) -> None:
        """Take in what was logged of a step; NaN and the infinities come as text."""
        for name in self.names:
            value = values.get(name)
            if value is None:
                continue
            last = self._last.get(name)
            if last is not None and step > last:
                self._gap = max(self._gap, step - last)
            self._last[name] = step
            if type(value) is not str:
                if self._runs:
                    self._runs.pop(name, None)
                continue
            steps = self._runs.setdefault(name, [])
            if step not in steps:
                steps.append(step)
            if len(steps) >= LIMIT and self.verdict is None:
                self.verdict = Diverged(name, value, tuple(steps))

    def suspects(self, step: int) -> bool:
        """Whether the state after `step` is better not saved; a metric that is logged no more accuses nobody."""
        return any(step - steps[-1] <= self._gap for steps in self._runs.values())
