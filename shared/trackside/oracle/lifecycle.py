"""I1, I2, I4 and I16: a job ends once, is never lost, has numbered attempts, and what is asked twice is done once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from trackside.models import AttemptState, EventKind, JobState
from trackside.oracle.history import History, JobHistory, Sample
from trackside.oracle.verdicts import JobRule, SystemRule


def _terminal_once(each: JobHistory, history: History) -> Iterator[str]:
    ends = [event for event in each.events if event.kind is EventKind.TRANSITION and event.new and event.new.terminal]
    if len(ends) > 1:
        yield f"it ended {len(ends)} times: {', '.join(str(event.new) for event in ends)}"
    if history.over and not each.job.state.terminal:
        yield f"it has not ended: {each.job.state}, attempt {each.job.attempt}, {each.job.detail}"
    if each.job.state.terminal and len(ends) == 0:
        yield f"it is {each.job.state}, and no event says so"
    if ends:
        after = each.events[each.events.index(ends[0]) + 1 :]
        acts = [event.kind.value for event in after if event.kind not in (EventKind.NOTE, EventKind.TRANSITION)]
        if acts:
            yield f"after its end came {', '.join(acts)}"
    states = each.expected.states
    if states is not None and each.job.state.terminal and each.job.state not in states:
        yield f"it ended {each.job.state} ({each.job.detail}), not {' or '.join(sorted(states))}"


def _acknowledged(history: History) -> Iterator[str]:
    there = {each.job.id for each in history.jobs}
    asked = [each.job for each in history.operations or () if each.what == "submit" and each.error is None]
    for job_id in dict.fromkeys((*history.submitted, *asked)):
        if job_id not in there:
            yield f"{job_id} was submitted and is not on the bus"


def _none_lost(history: History) -> Iterator[str]:
    gone: dict[str, JobState] = {}
    seen: set[str] = set()
    for look in _full(history):
        for job_id, state in look.states.items():
            if state.terminal == (job_id in look.live):
                yield f"{job_id} is {state} and {'' if job_id in look.live else 'not '}listed as live, {look.at_ms} ms"
            if job_id in gone and state is not gone[job_id]:
                yield f"{job_id} was seen {gone[job_id]} and later {state}"
            if state.terminal:
                gone[job_id] = state
        for job_id in seen - look.states.keys():
            yield f"{job_id} had vanished from the bus at {look.at_ms} ms"
        seen |= look.states.keys()
    for each in history.jobs:
        if each.job.id in gone and each.job.state is not gone[each.job.id]:
            yield f"{each.job.id} was seen {gone[each.job.id]} and is {each.job.state} now"


def _full(history: History) -> list[Sample]:
    return [look for look in history.samples if not look.partial]


def _attempts(each: JobHistory, history: History) -> Iterator[str]:
    numbers = [attempt.number for attempt in each.attempts]
    if numbers != list(range(1, each.job.attempt + 1)):
        yield f"attempts {numbers} where 1 to {each.job.attempt} should be"
    for kind in (EventKind.ASSIGNED, EventKind.STARTED, EventKind.ENDED):
        told = [event.attempt for event in each.events if event.kind is kind]
        twice = [number for number, times in Counter(told).items() if times > 1]
        if twice:
            yield f"{kind} more than once: attempts {twice}"
        if told != sorted(told, key=lambda number: number or 0):
            yield f"{kind} out of order: {told}"
    ends = {event.attempt: event.cause for event in each.events if event.kind is EventKind.ENDED}
    for attempt in each.attempts:
        if attempt.state is AttemptState.ENDED:
            reason = attempt.outcome.reason.value if attempt.outcome else None
            if reason is None or ends.get(attempt.number) != reason:
                yield f"attempt {attempt.number} ended {reason}, its event says {ends.get(attempt.number)}"
        elif each.job.state.terminal or attempt.number < each.job.attempt:
            yield f"attempt {attempt.number} is {attempt.state}, though it is over"


def _as_many_as_due(each: JobHistory, history: History) -> Iterator[str]:
    limit = each.expected.attempts_max
    if limit is not None and each.job.attempt > limit:
        reasons = [attempt.outcome.reason.value for attempt in each.attempts if attempt.outcome]
        yield f"{each.job.attempt} attempts, at most {limit} were due: {reasons}"
    for attempt, allowed in zip(each.attempts, each.expected.reasons or (), strict=False):
        if attempt.outcome is not None and attempt.outcome.reason not in allowed:
            yield f"attempt {attempt.number} ended {attempt.outcome.reason}, not {' or '.join(sorted(allowed))}"


def _idempotent(each: JobHistory, history: History) -> Iterator[str]:
    submitted = sum(event.kind is EventKind.SUBMITTED for event in each.events)
    if submitted != 1:
        yield f"{submitted} events say that it was submitted"
    cancels = sum(event.new is JobState.CANCELLING for event in each.events)
    if cancels > 1:
        yield f"cancel took effect {cancels} times"
    names = Counter(event.data.get("name") for event in each.events if event.kind is EventKind.CHECKPOINT)
    twice = [name for name, times in names.items() if times > 1]
    if twice:
        yield f"checkpoints accepted twice: {twice}"


# What a wish leads to at once, and the cause that its event tells.
_WISHES: Final = {
    "cancel": (frozenset({JobState.CANCELLING, JobState.CANCELLED}), "cancel requested"),
    "pause": (frozenset({JobState.PAUSING, JobState.PAUSED}), "pause requested"),
}


def _heeded(each: JobHistory, history: History) -> Iterator[str]:
    """What was acknowledged was done, and nothing was done that nobody asked for."""
    asked = [operation for operation in history.operations or () if operation.job == each.job.id]
    for what, (states, cause) in _WISHES.items():
        wishes = [operation for operation in asked if operation.what == what]
        done = any(event.kind is EventKind.TRANSITION and event.new in states for event in each.events)
        if any(wish.error is None for wish in wishes) and not done:
            yield f"the wish to {what} it was acknowledged, and nothing came of it: it is {each.job.state}"
        if not wishes and any(event.cause == cause for event in each.events):
            yield f"it says {cause!r}, and nobody asked"
    if each.job.state is JobState.FAILED and any(wish.what == "cancel" and wish.error is None for wish in asked):
        yield "it was cancelled, and is failed"


JOB_RULES: Final = (
    JobRule(invariant="I1", name="ends once", sees=lambda each, history: True, broken=_terminal_once),
    JobRule(invariant="I4", name="numbered attempts", sees=lambda each, history: True, broken=_attempts),
    JobRule(
        invariant="I4",
        name="no more attempts than due",
        sees=lambda each, history: each.expected.attempts_max is not None or bool(each.expected.reasons),
        broken=_as_many_as_due,
    ),
    JobRule(invariant="I16", name="done once", sees=lambda each, history: True, broken=_idempotent),
    JobRule(
        invariant="I16",
        name="what was acknowledged is done",
        sees=lambda each, history: history.operations is not None,
        broken=_heeded,
    ),
)
SYSTEM_RULES: Final = (
    SystemRule(
        invariant="I2", name="acknowledged jobs are there", sees=lambda history: bool(history.submitted),
        broken=_acknowledged,
    ),
    SystemRule(
        invariant="I2", name="at every look", sees=lambda history: bool(_full(history)), broken=_none_lost
    ),
)  # fmt: skip
