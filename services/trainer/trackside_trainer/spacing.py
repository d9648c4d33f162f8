"""How far apart entries are sent, so that a stream that keeps so many of them holds a run of weeks from its beginning.

A stream is trimmed by entries, and an entry may hold much: a run that logs at each of many short steps fills it by the
clock, not by what it says. So the more entries there are, the longer small ones wait for company.
"""

from __future__ import annotations

from typing import Final

ENOUGH_BYTES: Final = 64 * 1024  # are sent at once
# The share of the bound that is used, and the seconds between entries up to there. With 200,000 entries and 20 a second
# at first: 0.7 hours, then 14 hours, 3 days and 35 days.
_WAITS: Final = ((0.25, 0.0), (0.5, 1.0), (0.75, 5.0))
_LAST_S: Final = 60.0


def wait_s(entries: int, limit: int) -> float:
    """Seconds that a small entry waits behind the one before, in a stream of `entries` that keeps `limit`."""
    return next((seconds for share, seconds in _WAITS if entries < share * limit), _LAST_S)
