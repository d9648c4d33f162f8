"""Calls to a bus that may be away: one try at a time, growing waits in between, and the loop goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from trackside import logs
from trackside.bus.client import ResponseError
from trackside.errors import BusError
from trackside.retry import backoff_s

T = TypeVar("T")
_FIRST_S: Final = 0.05
_MAX_S: Final = 1.0  # the longest that a server which is back waits to be noticed


class Patience:
    """Remembers that the bus does not answer, so that a loop neither hammers it nor waits for it."""

    def __init__(self) -> None:
        self._failures = 0
        self._not_before_s = 0.0
        self._away_since_s = 0.0

    @property
    def away(self) -> bool:
        """Whether the last call failed."""
        return self._failures > 0

    def wait_s(self) -> float:
        """How long until the next call makes sense."""
        return max(0.0, self._not_before_s - time.monotonic())

    def call(self, act: Callable[[], T]) -> T | None:
        """What `act` returns; None when the bus failed it, or when it is too early to ask again.

        Fenced, NotFound and all that is no trouble of the bus passes through.
        """
        if self.wait_s() > 0:
            return None
        try:
            result = act()
        except (BusError, ResponseError) as error:
            self._failed(error)
            return None
        self._succeeded()
        return result

    def _failed(self, error: Exception) -> None:
        now_s = time.monotonic()
        if self._failures == 0:
            self._away_since_s = now_s
            logs.get().warning("bus_away", error=str(error))
        self._failures += 1
        self._not_before_s = now_s + backoff_s(self._failures, first_s=_FIRST_S, max_s=_MAX_S)

    def _succeeded(self) -> None:
        if self._failures:
            away_s = round(time.monotonic() - self._away_since_s, 2)
            logs.get().info("bus_back", away_s=away_s, failures=self._failures)
        self._failures = 0
