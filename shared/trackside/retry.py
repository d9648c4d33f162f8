"""The named tenacity policies: every wait and every limit of tries stands here.

Only what is safe to repeat is retried: reads, writes with a fenced or optimistic key, and connecting.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Final, TypeVar, cast

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random,
    wait_random_exponential,
)

from trackside.errors import BusUnavailable

T = TypeVar("T")
# A connection that breaks says so in a moment; a server that is silent has cost its whole limit by then.
_AT_ONCE_TRIES: Final = 6
_AT_ONCE_LIMIT_S: Final = 0.3
_AT_ONCE_WAIT_S: Final = 0.02


def backoff_s(failures: int, *, first_s: float, max_s: float) -> float:
    """Full jitter: a uniform draw from 0 to `first_s` * 2**(failures-1), never above `max_s`; 0 for no failure.

    The jitter and the ceiling are tenacity's (`wait_random_exponential`); it only asks its state for the count.
    """
    if failures < 1:
        return 0.0
    wait = wait_random_exponential(multiplier=first_s, max=max_s)
    return float(wait(cast("object", SimpleNamespace(attempt_number=failures))))  # type: ignore[arg-type]  # it reads one field


def rest_s(openings: int, *, first_s: float, max_s: float) -> float:
    """How long a slot rests: a uniform draw from `first_s` to `first_s` * 2**(openings-1), never above `max_s`."""
    wait = wait_random_exponential(multiplier=first_s, max=max_s, min=min(first_s, max_s))
    return float(wait(cast("object", SimpleNamespace(attempt_number=max(1, openings)))))  # type: ignore[arg-type]  # it reads one field


def until_reachable(
    act: Callable[[], T], *, limit_s: float, lost: Callable[[BusUnavailable], object] = lambda _: None
) -> T:
    """Repeat `act` while no server answers, with jittered growing waits, for `limit_s` at most; then raise.

    `lost` is told of the first time that none answered.
    """

    def waits(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number == 1 and isinstance(error, BusUnavailable):
            lost(error)

    policy = Retrying(
        retry=retry_if_exception_type(BusUnavailable),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        stop=stop_after_delay(limit_s),
        before_sleep=waits,
        reraise=True,
    )
    return policy(act)


def _broke(error: BusUnavailable) -> bool:
    """Whether the server may answer at once; where nobody listens, or it takes no writes, asking again only harms."""
    return not error.facts.get("refused") and "full" not in error.facts


def at_once(act: Callable[[], T]) -> T:
    """Repeat `act` a few times where the connection broke, with hardly a wait; what is slow to fail is not repeated."""
    began_s = time.monotonic()
    try:
        return act()  # every read comes through here: where nothing breaks it costs nothing
    except BusUnavailable as error:
        if not _broke(error) or time.monotonic() - began_s > _AT_ONCE_LIMIT_S:
            raise
    policy = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, BusUnavailable) and _broke(error)),
        wait=wait_random(0, _AT_ONCE_WAIT_S),
        stop=stop_after_attempt(_AT_ONCE_TRIES - 1) | stop_after_delay(_AT_ONCE_LIMIT_S),
        reraise=True,
    )
    return policy(act)
