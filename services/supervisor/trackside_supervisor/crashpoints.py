"""Places where a test can have the supervisor die or stop, between any two of its steps.

`TRACKSIDE_CRASH_AT=<point>:<nth>` kills this process with SIGKILL when it comes to that point for the nth time;
`<point>:<nth>:stop` freezes it there with SIGSTOP, as a virtual machine or a closed laptop would. It is read once, at
the start; unarmed, a point is one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

from trackside.errors import ConfigurationError

ENVIRONMENT: Final = "TRACKSIDE_CRASH_AT"
# In the order in which a round comes by them.
POINTS: Final = (
    *("before beat", "before leads", "before events", "before ledger", "after ledger", "before look"),
    *("before probe", "after probe submitted", "after probe"),
    *("before requeue", "after requeue"),
    *("before discard", "after discard", "after end"),
    *("before conclude", "after conclude"),
    *("before parents", "after parents"),
    *("before assign", "after assign", "after round"),
)
# Come by only where a server came back with less than it had.
REBUILD_POINTS: Final = ("before rebuild", "rebuilding", "after rebuild")
_SIGNALS: Final = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


class _Armed:
    """The point, how many passes are left, and the signal; one a process, as its death is."""

    point: str | None = None
    left = 0
    signum = signal.SIGKILL


def arm(text: str | None) -> None:
    """Arm a point from the environment's text; None or nothing disarms."""
    if not text:
        _Armed.point = None
        return
    point, _, rest = text.partition(":")
    nth, _, what = rest.partition(":")
    if (
        point not in (*POINTS, *REBUILD_POINTS)
        or not nth.isdecimal()
        or int(nth) < 1
        or (what or "kill") not in _SIGNALS
    ):
        raise ConfigurationError(
            f"{ENVIRONMENT} is {text!r}: give POINT:NTH or POINT:NTH:stop with one of "
            f"{', '.join((*POINTS, *REBUILD_POINTS))}",
            setting=ENVIRONMENT,
        )
    _Armed.point, _Armed.left, _Armed.signum = point, int(nth), _SIGNALS[what or "kill"]


def here(point: str) -> None:
    """Come by a point."""
    if _Armed.point != point:
        return
    _Armed.left -= 1
    if _Armed.left == 0:
        os.kill(os.getpid(), _Armed.signum)
