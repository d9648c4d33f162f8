"""I9, I10 and I13: a fault is noticed, the work goes on, others are left in peace. Only what is stuck is a violation.

How fast something is depends on the machine, so figures are told (`costs.measure`) and never judged by a test. What is
judged are bounds that the observer gives, so wide that only something that hangs exceeds them:

    noticed_max_s    30 s where every limit of silence or hanging is 4 s at most, as in the drill: seven times as much
    stepping_max_s   60 s there: a new host agent, with torch loaded on two busy cores, takes ten
    a bystander      a tenth of its undisturbed pace, where nine tenths are promised; and never less than 20 s in all
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trackside.models import EventKind, JobState
from trackside.oracle.costs import measure
from trackside.oracle.history import History, JobHistory
from trackside.oracle.verdicts import JobRule

_CRAWL: Final = 10.0  # times as slow as undisturbed
_LEAST_S: Final = 20.0
_CALM: Final = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED})


def _noticed(each: JobHistory, history: History) -> Iterator[str]:
    at_ms, limit_s = each.expected.harmed_at_ms, each.expected.noticed_max_s
    if at_ms is None or limit_s is None:
        return
    noticed_s = measure(each, at_ms).noticed_s
    if noticed_s is not None and noticed_s > limit_s:
        yield f"its attempt ended {noticed_s:.1f} s after the fault: more than {limit_s:g} s is stuck"


def _reported(each: JobHistory, history: History) -> Iterator[str]:
    """Who saw an attempt end tells how long after its death that was."""
    limit_s = each.expected.noticed_max_s
    for attempt in each.attempts:
        told_ms = attempt.outcome.noticed_after_ms if attempt.outcome else None
        if limit_s is not None and told_ms is not None and told_ms > limit_s * 1000:
            yield f"attempt {attempt.number} was dead for {told_ms / 1000:.1f} s before anybody noticed"


def _stepping(each: JobHistory, history: History) -> Iterator[str]:
    at_ms, limit_s = each.expected.harmed_at_ms, each.expected.stepping_max_s
    if at_ms is None or limit_s is None:
        return
    cost = measure(each, at_ms)
    if cost.stepping_s is not None and cost.stepping_s > limit_s:
        yield f"it stepped again {cost.stepping_s:.1f} s after the fault: more than {limit_s:g} s is stuck"


def _begins(each: JobHistory, history: History) -> Iterator[str]:
    """An attempt that was given out does a step, or ends, before long: whatever the fault was."""
    limit_s = each.expected.stepping_max_s
    given = {event.attempt: event.at_ms for event in each.events if event.kind is EventKind.ASSIGNED}
    first: dict[int | None, int] = {}
    for event in each.events:
        if event.kind is EventKind.ENDED:
            first[event.attempt] = event.at_ms
    for entry in each.entries:
        if entry.batch is not None and entry.batch.at_ms:
            first[entry.attempt] = min(first.get(entry.attempt, entry.batch.at_ms[0]), *entry.batch.at_ms)
    for number, at_ms in given.items():
        if limit_s is not None and number in first and first[number] - at_ms > limit_s * 1000:
            yield f"attempt {number} did nothing for {(first[number] - at_ms) / 1000:.1f} s after it was given out"


def _in_peace(each: JobHistory, history: History) -> Iterator[str]:
    if each.job.attempt > 1:
        reasons = [attempt.outcome.reason.value for attempt in each.attempts if attempt.outcome]
        yield f"a bystander needed {each.job.attempt} attempts: {reasons}"
    seen = {look.states[each.job.id] for look in history.samples if each.job.id in look.states}
    moved = {event.new for event in each.events if event.kind is EventKind.TRANSITION and event.new is not None}
    if strange := sorted((seen | moved) - _CALM):
        yield f"a bystander was {', '.join(strange)}"


def _pace(each: JobHistory, history: History) -> Iterator[str]:
    times = [at_ms for entry in each.entries if entry.batch is not None for at_ms in entry.batch.at_ms]
    took_s, calm_s = (max(times) - min(times)) / 1000, (each.expected.step_s or 0.0) * (len(times) - 1)
    if took_s > max(_LEAST_S, _CRAWL * calm_s):
        yield f"a bystander took {took_s:.1f} s for {len(times)} steps, {calm_s:.1f} s undisturbed"


JOB_RULES: Final = (
    JobRule(
        invariant="I9", name="the fault is noticed",
        sees=lambda each, history: each.expected.harmed_at_ms is not None
        and each.expected.noticed_max_s is not None
        and measure(each, each.expected.harmed_at_ms).noticed_s is not None,
        broken=_noticed,
    ),
    JobRule(
        invariant="I9", name="an end is reported",
        sees=lambda each, history: each.expected.noticed_max_s is not None
        and any(attempt.outcome and attempt.outcome.noticed_after_ms is not None for attempt in each.attempts),
        broken=_reported,
    ),
    JobRule(
        invariant="I10", name="steps again",
        sees=lambda each, history: each.expected.harmed_at_ms is not None
        and each.expected.stepping_max_s is not None
        and measure(each, each.expected.harmed_at_ms).stepping_s is not None,
        broken=_stepping,
    ),
    JobRule(
        invariant="I10", name="an attempt given out begins",
        sees=lambda each, history: each.expected.stepping_max_s is not None and bool(each.attempts),
        broken=_begins,
    ),
    JobRule(
        invariant="I13", name="a bystander keeps its attempt and state",
        sees=lambda each, history: each.expected.bystander,
        broken=_in_peace,
    ),
    JobRule(
        invariant="I13", name="a bystander keeps stepping",
        sees=lambda each, history: each.expected.bystander
        and each.expected.step_s is not None
        and sum(len(entry.batch.at_ms) for entry in each.entries if entry.batch is not None) > 1,
        broken=_pace,
    ),
)  # fmt: skip
