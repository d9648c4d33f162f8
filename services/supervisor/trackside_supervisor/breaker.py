"""A circuit breaker for each slot: pure.

    closed ──five different jobs crash in a row──▶ open ──rest over──▶ probing ──self-test passes──▶ closed
                                                    ▲                     │
                                                    └── it does not ──────┘  and rests longer

One job that crashes again and again says something about the job; different jobs that crash one after the other say
something about the slot. Any success on it starts the count anew, and a crash after a newer checkpoint does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from trackside.models import Breaker, BreakerState, Reason

# Ends that a bad device, driver or host may cause. An exception of the program's own is not one.
CRASHES: Final = frozenset(
    {Reason.KILLED, Reason.CUDA_ERROR, Reason.GPU_LOST, Reason.STALLED, Reason.OOM_HOST, Reason.LOST}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The numbers of the breakers."""

    after: int  # different jobs
    rest_s: Callable[[int], float]  # openings -> seconds, jitter included


def observe(
    breaker: Breaker, job: str, reason: Reason, limits: Limits, now_ms: int, *, progressed: bool = False
) -> Breaker:
    """The breaker after an attempt of `job` has ended on its slot; `progressed`: it brought a newer checkpoint."""
    if job == breaker.probe:
        return _closed(breaker) if reason is Reason.SUCCEEDED else _open(breaker, limits, now_ms)
    if breaker.state is not BreakerState.CLOSED:  # what was on the slot before it opened says nothing new
        return breaker
    if reason is Reason.SUCCEEDED:
        return _closed(breaker)
    if reason not in CRASHES or progressed or job in breaker.failed:  # a slot that does work is no broken one
        return breaker
    grown = replace(breaker, failed=(*breaker.failed, job))
    return _open(grown, limits, now_ms) if len(grown.failed) >= limits.after else grown


def rested(breaker: Breaker, now_ms: int) -> bool:
    """Whether it is time for a self-test."""
    return breaker.state is BreakerState.OPEN and now_ms >= (breaker.until_ms or 0)


def probing(breaker: Breaker, probe: str) -> Breaker:
    """The breaker while `probe` tests the slot."""
    return replace(breaker, state=BreakerState.PROBING, until_ms=None, probe=probe)


def unanswered(breaker: Breaker, limits: Limits, now_ms: int) -> Breaker:
    """The breaker after a self-test that went away without an answer, as by somebody's cancel."""
    return replace(_open(breaker, limits, now_ms), openings=breaker.openings)


def takes(breaker: Breaker | None, job: str) -> bool:
    """Whether the slot takes this job."""
    return breaker is None or breaker.state is BreakerState.CLOSED or job == breaker.probe


def probe_id(breaker: Breaker) -> str:
    """The id of this opening's self-test: the same however often it is asked for."""
    stem = breaker.slot[:40].strip("-")
    return f"selftest-{stem}-{breaker.until_ms or 0:x}"


def _open(breaker: Breaker, limits: Limits, now_ms: int) -> Breaker:
    openings = breaker.openings + 1
    until_ms = now_ms + int(limits.rest_s(openings) * 1000)
    return replace(breaker, state=BreakerState.OPEN, openings=openings, until_ms=until_ms, probe=None)


def _closed(breaker: Breaker) -> Breaker:
    return Breaker(slot=breaker.slot)
