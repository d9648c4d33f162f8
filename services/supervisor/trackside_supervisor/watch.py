"""Which attempts have nobody left to report their end: pure, over one look at records, beats and deadlines.

Losing sight is not death. A worker that dies is reported at once by its agent, so what is judged here is a host or an
agent that fell silent, and only while this supervisor has itself been seeing clearly for long enough. `gather` picks
what the rules look at, `judge` applies them; that is recorded with the end, so that it can be judged again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that the rules look at: an attempt, and its slot's worker. A new fact needs a default."""

    now_ms: int
    clear: bool
    margin_ms: int
    claim_ms: int
    state: AttemptState
    assigned_at_ms: int
    started_at_ms: int | None = None
    worker_pid: int | None = None  # that claimed it
    deadline_ms: int | None = None  # None: the worker is no longer expected to beat
    beat_pid: int | None = None  # None: no beat is there
    beat_started_at_ms: int = 0
    beat_job: str | None = None
    fresh_ms: int = 0  # after a claim, in which the beat may still be that of the worker before
    agent_heard: bool = False  # after the worker was last heard: its host is there

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Facts:
        """The facts in a recorded end's inputs; what a later version added is passed over."""
        known = {each.name: inputs[each.name] for each in fields(cls) if inputs.get(each.name) is not None}
        return cls(**{**known, "state": AttemptState(known["state"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """An attempt that is lost: by which rule, and what the rule looked at."""

    rule: str
    outcome: Outcome
    inputs: dict[str, Any]


def lost(job: Job, attempt: Attempt, sight: Sight, limits: Limits) -> Loss | None:
    """The end of an attempt whose worker will never report it, or None while it may still."""
    return judge(gather(attempt, sight, limits))


def gather(attempt: Attempt, sight: Sight, limits: Limits) -> Facts:
    """What the rules need to know, from the record and one look."""
    member = f"{Role.WORKER}:{attempt.slot}"
    beat = sight.beats.get(member)
    return Facts(
        now_ms=sight.now_ms,
        clear=sight.clear,
        margin_ms=limits.margin_ms,
        claim_ms=limits.claim_ms,
        state=attempt.state,
        assigned_at_ms=attempt.assigned_at_ms,
        started_at_ms=attempt.started_at_ms,
        worker_pid=attempt.worker_pid,
        deadline_ms=sight.deadlines.get(member),
        beat_pid=beat.pid if beat is not None else None,
        beat_started_at_ms=beat.started_at_ms if beat is not None else 0,
        beat_job=beat.job if beat is not None else None,
        fresh_ms=limits.claim_ms,
        agent_heard=_agent_heard(attempt, sight),
    )


def _agent_heard(attempt: Attempt, sight: Sight) -> bool:
    """Whether its host's agent was heard when half of the worker's time was over; the last beats of both lie closer."""
    member = f"{Role.AGENT}:{attempt.host}"
    beat, late_ms = sight.beats.get(member), sight.deadlines.get(member)
    worker_late_ms = sight.deadlines.get(f"{Role.WORKER}:{attempt.slot}")
    if beat is None or late_ms is None or worker_late_ms is None:
        return False
    return beat.at_ms > worker_late_ms - (late_ms - beat.at_ms) / 2


def judge(facts: Facts) -> Loss | None:
    """Apply the rules, the first that fits."""
    if facts.state is AttemptState.ENDED or not facts.clear:
        return None
    if facts.deadline_ms is None:
        since = facts.started_at_ms or facts.assigned_at_ms
        gone = facts.now_ms - since > facts.claim_ms
        return _loss(facts, "worker gone", "its worker went away") if gone else None
    silent_ms = facts.now_ms - facts.deadline_ms
    if silent_ms > facts.margin_ms:
        late = f"no beat for {silent_ms / 1000:.1f} s past the limit"
        if facts.agent_heard:
            what = f"its worker stands still or is cut off, while its host is heard: {late}"
            return _loss(facts, "worker silent", what, silent_ms)
        return _loss(facts, "silent host", f"its host fell silent: {late}", silent_ms)
    if facts.state is AttemptState.ASSIGNED:
        unclaimed = facts.now_ms - facts.assigned_at_ms > facts.claim_ms and facts.beat_job is None
        return _loss(facts, "never claimed", "its worker never claimed it") if unclaimed else None
    running_ms = facts.now_ms - (facts.started_at_ms or 0)
    replaced = None not in (facts.beat_pid, facts.worker_pid) and facts.beat_pid != facts.worker_pid
    if replaced and running_ms > facts.fresh_ms and facts.now_ms - facts.beat_started_at_ms > facts.claim_ms:
        return _loss(facts, "worker replaced", "its worker was replaced and nobody reported its end")
    idle = facts.beat_pid is not None and facts.beat_pid == facts.worker_pid and facts.beat_job is None
    if idle and facts.started_at_ms is not None and running_ms > facts.claim_ms:
        return _loss(facts, "not carried", "its worker is done with it, and the server has lost the report of its end")
    return None


def _loss(facts: Facts, rule: str, detail: str, silent_ms: int | None = None) -> Loss:
    outcome = Outcome(
        reason=Reason.LOST, detail=detail, seen_by=Role.SUPERVISOR.value, noticed_after_ms=silent_ms or None, rule=rule
    )
    known = {name: value for name, value in asdict(facts).items() if value is not None}
    return Loss(rule=rule, outcome=outcome, inputs=known)
