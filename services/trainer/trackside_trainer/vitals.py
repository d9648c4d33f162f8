"""What a worker's beat tells about the attempt that it carries."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from trackside import processes
from trackside.sdk.page import ControlPage

_RATE_WINDOW_S: Final = 10.0


class Vitals:
    """Progress and appetite of one attempt; each look compares with the one before."""

    def __init__(self) -> None:
        self._pace: deque[tuple[float, int]] = deque()  # when a step had ended, and how many had by then
        self._usage: tuple[float, float] | None = None  # monotonic time and processor seconds at the last look

    def look(self, page: ControlPage, *, running: bool) -> dict[str, float | int | None]:
        """The beat's fields; `running` while there is a process."""
        now_s, boundary_ns = time.monotonic(), page.boundary_ns
        cpu_pct, rss_mib = self._appetite(now_s) if running else (None, None)
        return {
            "step": page.completed if page.first is not None else None,
            "total": page.total,
            "step_age_s": None if boundary_ns is None else round(max(0.0, now_s - boundary_ns / 1e9), 3),
            "steps_per_s": None if boundary_ns is None else self._steps_per_s(page.completed, boundary_ns / 1e9, now_s),
            "cpu_pct": cpu_pct,
            "rss_mib": rss_mib,
        }

    def _steps_per_s(self, completed: int, ended_s: float, now_s: float) -> float | None:
        """Of the window, or where steps are longer than that, of the newest one; None before there are two ends."""
        pace = self._pace
        if not pace or completed != pace[-1][1]:
            pace.append((ended_s, completed))
        # Two are kept, however old: a step longer than the window has a speed as well.
        while len(pace) > 2 and now_s - pace[1][0] > _RATE_WINDOW_S:
            pace.popleft()
        if len(pace) < 2:
            return None
        (first_s, first), (last_s, last) = pace[0], pace[-1]
        step_s = (last_s - first_s) / (last - first)
        over_s = max(last_s - first_s, now_s - first_s - step_s)  # a step that is late makes it slower, none other
        return round((last - first) / over_s, 6) if over_s > 0 else None

    def _appetite(self, now_s: float) -> tuple[float | None, float]:
        """Per cent of one core since the last look, and MiB now, of the whole tree of processes."""
        used_s, rss_mib = processes.usage(processes.descendants(os.getpid()))
        before, self._usage = self._usage, (now_s, used_s)
        if before is None or now_s <= before[0]:
            return None, round(rss_mib, 1)
        return round(max(0.0, (used_s - before[1]) / (now_s - before[0]) * 100), 1), round(rss_mib, 1)
