"""Which attempts have nobody left to report their end: pure, over one look at records, beats and deadlines.

Losing sight is not death. A worker that dies is reported at once by its agent, so what is judged here is a host or an
agent that fell silent, and only while this supervisor has itself been seeing clearly for long enough.
"""

from __future__ import annotations

from dataclasses import dataclass

from trackside.models import Attempt, AttemptState, Beat, Job, Outcome, Reason, Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """One look at the bus: its time, every deadline, every beat, and since when this process sees without a gap."""

    now_ms: int
    deadlines: dict[str, int]  # <role>:<name> -> ms
    beats: dict[str, Beat | None]
    clear: bool  # whether silence may be judged yet


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long silence lasts before it is called loss, in ms."""

    margin_ms: int  # after a worker's deadline
    claim_ms: int  # from assignment to claim, or for a worker that shows another job


def lost(job: Job, attempt: Attempt, sight: Sight, limits: Limits) -> Outcome | None:
    """The outcome of an attempt whose worker will never report, or None while it may still."""
    if attempt.state is AttemptState.ENDED or not sight.clear:
        return None
    member = f"{Role.WORKER}:{attempt.slot}"
    deadline = sight.deadlines.get(member)
    if deadline is None:
        since = attempt.started_at_ms or attempt.assigned_at_ms
        if sight.now_ms - since > limits.claim_ms:
            return _outcome("its worker went away", 0)
        return None
    silent_ms = sight.now_ms - deadline
    if silent_ms > limits.margin_ms:
        return _outcome(f"its host fell silent: no beat for {silent_ms / 1000:.1f} s past the limit", silent_ms)
    beat = sight.beats.get(member)
    if attempt.state is AttemptState.ASSIGNED:
        if sight.now_ms - attempt.assigned_at_ms > limits.claim_ms and (beat is None or beat.job is None):
            return _outcome("its worker never claimed it", 0)
        return None
    replaced = beat is not None and attempt.worker_pid is not None and beat.pid != attempt.worker_pid
    if replaced and beat is not None and sight.now_ms - beat.started_at_ms > limits.claim_ms:
        return _outcome("its worker was replaced and nobody reported its end", 0)
    return None


def _outcome(detail: str, silent_ms: int) -> Outcome:
    return Outcome(reason=Reason.LOST, detail=detail, seen_by=Role.SUPERVISOR.value, noticed_after_ms=silent_ms or None)
