"""A circuit breaker for each slot: pure.

    closed ──five different jobs crash in a row──▶ open ──rest over──▶ probing ──self-test passes──▶ closed
                                                    ▲                     │
                                                    └── it does not ──────┘  and rests longer

One job that crashes again and again says something about the job; different jobs that crash one after the other say
something about the slot. Any success on it starts the count anew, and a crash after a newer checkpoint does not count.

Each move is recorded with the breaker as it was before and what happened (`inputs`), so that `replay` makes it again.
The rest is drawn before the move (`drawn`), so chance is one of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from trackside.models import Breaker, BreakerState, Reason

# Ends that a bad device, driver or host may cause. An exception of the program's own is not one.
CRASHES: Final = frozenset(
    {Reason.KILLED, Reason.CUDA_ERROR, Reason.GPU_LOST, Reason.STALLED, Reason.OOM_HOST, Reason.LOST}
)

RESTED: Final = "breaker probing"
WENT_AWAY: Final = "self-test went away"


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


def drawn(limits: Limits, breaker: Breaker) -> Limits:
    """The same limits with the rest drawn that the breaker's next opening would get."""
    rest_s = round(limits.rest_s(breaker.openings + 1), 3)
    return replace(limits, rest_s=lambda _: rest_s)


def inputs(before: Breaker, limits: Limits | None, now_ms: int, **happened: Any) -> dict[str, Any]:
    """What a move is made again from; `happened`: the job, reason and progress of an end, nothing for a rest over."""
    chance = {} if limits is None else {"after": limits.after, "rest_s": limits.rest_s(before.openings + 1)}
    known = {name: value for name, value in asdict(before).items() if value not in (None, ())}
    return {"before": known, "now_ms": now_ms, **chance, **happened}


def replay(cause: str, recorded: Mapping[str, Any]) -> Breaker:
    """The breaker after the move that these recorded inputs led to."""
    known = recorded["before"]
    before = Breaker(
        **{**known, "state": BreakerState(known.get("state", "closed")), "failed": tuple(known.get("failed", ()))}
    )
    now_ms: int = recorded["now_ms"]
    if cause == RESTED:
        return probing(before, probe_id(before)) if rested(before, now_ms) else before
    limits = Limits(after=recorded["after"], rest_s=lambda _: float(recorded["rest_s"]))
    if cause == WENT_AWAY:
        return unanswered(before, limits, now_ms)
    reason, progressed = Reason(recorded["reason"]), bool(recorded.get("progressed"))
    return observe(before, str(recorded["job"]), reason, limits, now_ms, progressed=progressed)


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
