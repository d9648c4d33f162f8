"""Whether the server refuses to write: told by the errors that it counts, since the dashboard may not try it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trackside.bus.client import Client
from trackside.errors import BusDenied

FRESH_S: Final = 6.0  # every process beats each second, so that a server that refuses is asked again and again
WORDS: Final = {
    "OOM": "The server is out of memory and takes no writes: raise its maxmemory.",
    "MISCONF": "The server cannot write to its disk and takes no writes: free space there, and see its log.",
    "READONLY": "The server is a replica and takes no writes: connect the services to the one that does.",
}


class Refusals:
    """Follows the counts of one server; `take` them now and then."""

    def __init__(self) -> None:
        self._counts: dict[str, int] | None = None
        self._grown_s: dict[str, float] = {}
        self._denied = False

    def read(self, client: Client, now_s: float) -> None:
        """Ask the server once more; one whose rules do not let this user ask is not asked again."""
        if self._denied:
            return
        try:
            self.take(client.info("errorstats"), now_s)
        except BusDenied:
            self._denied = True

    def take(self, errorstats: Mapping[str, Any], now_s: float) -> None:
        """Take in what `INFO errorstats` says."""
        counts = {kind: _count(errorstats.get(f"errorstat_{kind}")) for kind in WORDS}
        before, self._counts = self._counts, counts
        if before is not None:  # what it refused before we came may be long over
            self._grown_s |= {kind: now_s for kind in WORDS if counts[kind] > before[kind]}

    def now(self, now_s: float) -> str | None:
        """Why the server refuses to write; None where it has not done so lately, as far as is known."""
        fresh = [kind for kind, at_s in self._grown_s.items() if now_s - at_s <= FRESH_S]
        return fresh[0] if fresh else None


def _count(told: Any) -> int:
    value = told.get("count") if isinstance(told, Mapping) else None
    return value if isinstance(value, int) else 0
