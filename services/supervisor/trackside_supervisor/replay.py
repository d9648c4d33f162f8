"""Any decision of the supervisor's, made again from its event alone: pure.

`replay` says in the event's own words what the recorded inputs lead to with today's rules; `differs` compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from trackside.models import Event, EventKind, JobState, Reason, Role
from trackside_supervisor import breaker, older, parents, placement, rebuild, recovery, standstill, watch

# Kinds of event by which the supervisor tells a decision; what it submits are self-tests, told by their breaker.
_DECISIONS: Final = frozenset({EventKind.TRANSITION, EventKind.ASSIGNED, EventKind.ENDED, EventKind.SLOT})
# Those that move nothing yet are notes. Of a standstill and a rebuild an earlier version told without their inputs.
_NOTED: Final = frozenset({parents.SUCCEEDED})


def differs(event: Event) -> str | None:
    """How the decision that an event tells differs from what its inputs lead to; None: it does not, or is none."""
    if event.by is None or event.by.partition(":")[0] != Role.SUPERVISOR:
        return None
    made = replay(event)
    if made is None:
        decides = event.kind in _DECISIONS or (event.kind is EventKind.NOTE and event.cause in _NOTED)
        return f"{event.kind} {event.cause!r} has no inputs to make it again from" if decides else None
    told = {"cause": event.cause, "job": event.job, "new": event.new, **event.data}
    other = {name: value for name, value in made.items() if told.get(name) != value}
    words = ", ".join(f"{name} {value!r}, not {told.get(name)!r}" for name, value in other.items())
    return f"{event.kind} {event.cause!r}: its inputs lead to {words}" if other else None


def replay(event: Event) -> dict[str, Any] | None:
    """What the inputs in a decision's event lead to; None for any other event, and for one that tells no inputs."""
    if event.kind is EventKind.TRANSITION:
        return _replay_move(event)
    inputs = event.data.get("inputs")
    if event.kind is EventKind.NOTE and event.cause == parents.SUCCEEDED and "parents" in event.data:
        return {"cause": parents.SUCCEEDED if parents.replay(event.data).answer == "ready" else None}
    again = _OF_KIND.get(event.kind)
    return again(event, inputs) if again is not None and isinstance(inputs, dict) else None


def _replay_move(event: Event) -> dict[str, Any] | None:
    data = event.data
    if "reason" in data:
        decision = recovery.replay(data, event.at_ms)
        return {"cause": decision.rule, "new": decision.state, "detail": decision.detail}
    if event.cause == recovery.BACKOFF_OVER:
        return {"new": JobState.QUEUED if data.get("retry_at_ms", 0) <= event.at_ms else JobState.WAITING}
    if event.cause == parents.RULE:
        verdict = parents.replay(data)
        new = JobState.FAILED if verdict.answer == "failed" else JobState.QUEUED
        return {"new": new, "parent": verdict.parent, "detail": verdict.detail}
    return None


def _replay_note(event: Event, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    match event.cause:
        case standstill.OLDER:
            again = standstill.told(standstill.Facts.from_inputs(inputs))
            return {"cause": standstill.OLDER if again else None, **again}
        case rebuild.BEGUN:
            verdict = older.judge(older.Look.from_inputs(inputs))
            return {"cause": rebuild.BEGUN if verdict is older.Verdict.OLDER else None}
        case rebuild.REBUILT:
            gap = older.Gap.from_inputs(inputs)
            cause = None if older.is_whole(gap) else rebuild.REBUILT
            return {"cause": cause, "there": gap.theirs, "lost_events": gap.lost_events}
    return None


def _replay_placement(event: Event, inputs: Mapping[str, Any]) -> dict[str, Any]:
    job, slot = placement.replay(inputs) or (None, None)
    return {"job": job, "slot": slot}


def _replay_loss(event: Event, inputs: Mapping[str, Any]) -> dict[str, Any]:
    loss = watch.judge(watch.Facts.from_inputs(inputs))
    if loss is None:
        return {"cause": None}
    late = loss.outcome.noticed_after_ms
    told = {"cause": Reason.LOST.value, "rule": loss.rule, "detail": loss.outcome.detail}
    return told if late is None else {**told, "noticed_after_ms": late}


def _replay_breaker(event: Event, inputs: Mapping[str, Any]) -> dict[str, Any]:
    after = breaker.replay(event.cause or "", inputs)
    cause = breaker.WENT_AWAY if event.cause == breaker.WENT_AWAY else f"breaker {after.state}"
    told = {"cause": cause, "slot": after.slot, "openings": after.openings}
    return told if after.until_ms is None else {**told, "until_ms": after.until_ms}


_OF_KIND: Final[dict[EventKind, Callable[[Event, Mapping[str, Any]], dict[str, Any] | None]]] = {
    EventKind.NOTE: _replay_note,
    EventKind.ASSIGNED: _replay_placement,
    EventKind.ENDED: _replay_loss,
    EventKind.SLOT: _replay_breaker,
}
