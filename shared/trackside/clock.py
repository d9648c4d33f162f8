"""Time behind one small protocol, so that decisions can be tested with a hand-moved clock."""

from __future__ import annotations

import time
from typing import Final, Protocol

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What the library asks of a clock."""

    def monotonic_s(self) -> float:
        """Seconds that never go backwards; only differences mean anything, and only within one process.

        They go on while the machine sleeps, where it has such a clock.
        """

    def wall_ms(self) -> int:
        """Milliseconds since the epoch by this machine's clock: for people, never for decisions between hosts."""

    def sleep_s(self, seconds: float) -> None:
        """Wait `seconds`."""


def since_boot_s() -> float:
    """A clock that no one sets; it goes on while the machine sleeps, where there is one that does."""
    return time.clock_gettime(_CLOCK)


class SystemClock:
    """The machine's own clocks."""

    def monotonic_s(self) -> float:
        return since_boot_s()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def sleep_s(self, seconds: float) -> None:
        time.sleep(seconds)
