"""What a trainer says of a server that has lost records which it needs: now and then, for as long as that lasts."""

from __future__ import annotations

import time
from typing import Any, Final

from trackside.errors import NotFound, ServerBehind

TODO: Final = (
    "the supervisor restores the records from its ledger; where it has none, restore the server's data from a backup"
)
_AGAIN_S: Final = 60.0


class Behind:
    """Tells it to a log."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._next_s = 0.0

    def tell(self, error: NotFound | ServerBehind, **facts: Any) -> None:
        """Say what is missing, unless it was said a moment ago."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _AGAIN_S
            self._log.error("server_is_behind", why=error.message, todo=TODO, **facts)
