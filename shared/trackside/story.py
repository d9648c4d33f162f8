"""A job's life in plain words, from its record, its attempts and its history: pure.

Each sentence has its time. Checkpoints are told once an attempt, and an attempt's end with what was decided about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from trackside import line
from trackside.models import (
    Attempt,
    AttemptState,
    Beat,
    Breaker,
    BreakerState,
    Event,
    EventKind,
    Job,
    JobState,
    Reason,
    Role,
    Slot,
)

# Every rule by which the supervisor decides about a job, and why it is one.
RULES: Final = {
    "succeeded": "the program finished",
    "cancelled": "somebody asked for it",
    "paused": "somebody asked for it",
    "preempted": "its host or worker stops in order, which is not counted against the job",
    "self-test failed": "a slot's self-test did not pass, so the slot rests on",
    "invalid_job": "the job cannot run as it was submitted",
    "timeout": "a time limit was reached",
    "diverged": "the watched metric is no finite number, and going back three times did not mend it",
    "rolled back": "the watched metric is no finite number; an older checkpoint may not lead there again",
    "oom_gpu": "the GPU's memory does not hold it, and would not the next time",
    "oom_host": "the host's memory did not hold it twice in a row, with no newer checkpoint in between",
    "host fault": "the host's doing and not the job's, so no retry is used up",
    "host fault again": "the host's doing or a stranger's again, with no newer checkpoint; the wait grows each time",
    "takes its hosts along": "lost with its host or stopped by a stranger ten times in a row, with no newer checkpoint",
    "permanent error": "an error that another try does not mend",
    "repeated error": "the same exception after the same step twice, with no newer checkpoint in between",
    "poison": "several attempts in a row brought no newer checkpoint",
    "budget used up": "more failures than retries since the last newer checkpoint",
    "retry at once": "the attempt brought a newer checkpoint, so waiting gains nothing",
    "retry with backoff": "it brought nothing new, or memory was short on the host; the wait grows each time",
    "backoff over": "it has waited as long as was drawn",
    "parent did not succeed": "a job that it was to run after failed, was cancelled or is gone",
    "parents succeeded": "every job that it was to run after has succeeded",
    "slot free": "it was the first in line that the slot fits: by priority, then age",
    "worker silent": "its worker was not heard for longer than the limit and a margin, while its host was",
    "silent host": "its worker was not heard for longer than the limit and a margin, so its host is taken for lost",
    "worker gone": "its worker has left, and nobody reported the attempt's end",
    "never claimed": "its worker lives, and did not take it in time",
    "worker replaced": "another worker serves the slot, and nobody reported the attempt's end",
    "server is older": "somebody has a newer attempt of it than the server knows, and no ledger tells of it",
    "server came back older": "events or attempts that were seen are not on the server any more",
    "records rebuilt": "the server lacked what the supervisor's ledger has of the job",
    "not carried": "its worker is done with it, and the server has lost the report of its end",
}
# Those that use up a retry.
COUNTED: Final = frozenset(
    {"oom_host", "permanent error", "repeated error", "poison", "budget used up", "retry at once", "retry with backoff"}
)
_FROM_OUTSIDE: Final = frozenset({"host fault again", "takes its hosts along"})
_REQUESTS: Final = {
    "cancel requested": "asked to cancel it",
    "pause requested": "asked to pause it",
    "resume requested": "asked to resume it",
    "pause refused": "it cannot pause, so it runs on",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One thing that happened, or comes next (`at_ms` None)."""

    at_ms: int | None
    text: str
    attempt: int | None = None


def tell(
    job: Job, attempts: Iterable[Attempt], events: Iterable[Event], now_ms: int, *, place: int | None = None
) -> list[Sentence]:
    """The whole story, oldest first; the last sentence says what comes next. `place` is the job's in line."""
    by_number = {attempt.number: attempt for attempt in attempts}
    saved: dict[int, list[int]] = {}
    told: list[Sentence] = []
    for event in events:
        number = event.attempt or 0
        if event.kind is EventKind.CHECKPOINT:
            saved.setdefault(number, []).append(int(event.data.get("step", 0)))
            continue
        text = _sentence(job, event, by_number.get(number), saved.get(number, []))
        if text is not None:
            told.append(Sentence(at_ms=event.at_ms, text=text, attempt=event.attempt))
    told.append(Sentence(at_ms=None, text=what_is_next(job, by_number.get(job.attempt), now_ms, place)))
    return told


def _sentence(job: Job, event: Event, attempt: Attempt | None, saved: list[int]) -> str | None:
    data = event.data
    match event.kind:
        case EventKind.SUBMITTED:
            return _submitted(job, event)
        case EventKind.ASSIGNED:
            return _given(event)
        case EventKind.RESTORED:
            return f"attempt {event.attempt} goes on after step {data.get('resumed_step')} ({data.get('resumed_from')})"
        case EventKind.ENDED:
            return _ended(event, attempt, saved)
        case EventKind.TRANSITION:
            return _moved(event)
        case EventKind.NOTE if data.get("text"):
            return f"{data.get('level', 'note')}: {data['text']}"
        case EventKind.NOTE if event.cause == "checkpoint damaged":
            return f"checkpoint {data.get('name')} is damaged and was put aside: {data.get('why')}"
        case EventKind.NOTE if event.cause == "parents succeeded":
            return f"{', '.join(job.spec.after)} succeeded, so it {line.FREE_SLOT}"
    return None


def _given(event: Event) -> str:
    """A placement with what it was decided by."""
    given = f"attempt {event.attempt} was given to {event.data.get('slot', 'a slot')}"
    inputs = event.data.get("inputs")
    if not isinstance(inputs, dict):
        return given
    told = [each for each in inputs.get("line", []) if isinstance(each, dict)]
    own = next((each for each in told if each.get("id") == event.job), {})
    passed = told.index(own) if own else 0
    queued, free = inputs.get("queued", 1), inputs.get("free", 1)
    parts = [f"{own.get('priority', 'normal')} priority"]
    parts.append("the only one in line" if queued == 1 else f"the first of {queued} in line that it fits")
    if passed:
        parts[-1] += f", before {', '.join(each['id'] for each in told[:passed])}, which it does not fit"
    if own.get("storage") is not None:
        parts.append("where its checkpoint can be read")
    parts.append("the only free slot" if free == 1 else f"one of {free} free slots")
    return f"{given} ({'; '.join(parts)})"


def _lost(event: Event) -> str | None:
    """The rule and the numbers by which an attempt was taken for lost."""
    rule, inputs = event.data.get("rule"), event.data.get("inputs")
    if rule not in RULES or not isinstance(inputs, dict):
        return None
    limit_ms = inputs.get("margin_ms" if rule in ("silent host", "worker silent") else "claim_ms", 0)
    return f"by the rule {rule!r}: {RULES[rule]} (limit {span(limit_ms / 1000)}, its own sight was clear)"


def _submitted(job: Job, event: Event) -> str:
    parts = [f"submitted by {job.spec.submitted_by or event.by or 'somebody'}"]
    if job.spec.retry_of:
        start = f"from its {event.data['from']}" if event.data.get("from") else "from the beginning"
        parts.append(f"to do {job.spec.retry_of} again, {start}")
    if job.spec.after:
        parts.append(f"to run after {', '.join(job.spec.after)}")
    return ", ".join(parts)


def _ended(event: Event, attempt: Attempt | None, saved: list[int]) -> str:
    outcome = attempt.outcome if attempt is not None else None
    parts = [f"attempt {event.attempt} ended: {event.cause}"]
    detail = event.data.get("detail")
    if detail and detail != event.cause:
        parts[0] += f" ({detail})"
    if attempt is not None and attempt.started_at_ms is not None:
        parts.append(f"after {span((event.at_ms - attempt.started_at_ms) / 1000)}")
    if outcome is not None and outcome.first_step is not None and outcome.last_step is not None:
        parts.append(f"having done steps {outcome.first_step} to {outcome.last_step}")
    parts.append(f"its newest checkpoint is of step {max(saved)}" if saved else "it brought no checkpoint")
    if outcome is not None and outcome.seen_by:
        late = outcome.noticed_after_ms
        parts.append(f"seen by {outcome.seen_by}" + ("" if late is None else f" within {late} ms"))
    lost = _lost(event)
    if lost is not None:
        parts.append(lost)
    return "; ".join(parts)


def _moved(event: Event) -> str | None:
    data = event.data
    if event.cause in _REQUESTS:
        who = "its worker" if event.cause == "pause refused" else event.by or "somebody"
        where = f", back at {data['from']}" if data.get("from") else ""
        return f"{who}: {_REQUESTS[event.cause]}{where}; it is {event.new}"
    if event.cause not in RULES:
        return None
    text = f"decided: {event.new}, by the rule {event.cause!r}: {RULES[event.cause]}"
    numbers = _numbers(event)
    return f"{text} ({numbers})" if numbers else text


def _numbers(event: Event) -> str:
    """The numbers behind a decision."""
    data = event.data
    if event.cause == "parent did not succeed":
        return str(data.get("detail", ""))
    if event.cause in _FROM_OUTSIDE:
        count, limit = data.get("host_faults", 0) + 1, data.get("host_faults_max")
        waits = f"; waits {span(data.get('wait_s', 0.0))}" if event.new is JobState.WAITING else ""
        return f"{count} in a row without a newer checkpoint, {limit} are too many{waits}"
    if event.cause not in COUNTED:
        return ""
    barren = 0 if data.get("progressed") else data.get("barren", 0) + 1
    failures = data.get("failures", 0) + 1
    parts = [
        f"{failures} failure{'s' if failures > 1 else ''} with {data.get('retries', 0)} retries",
        f"{barren} in a row without a newer checkpoint, {data.get('poison_after')} are too many",
    ]
    if event.new is JobState.WAITING:
        parts.append(f"waits {span(data.get('wait_s', 0.0))}")
    return "; ".join(parts)


def what_is_next(job: Job, newest: Attempt | None, now_ms: int, place: int | None = None) -> str:
    """What comes next for the job, and when."""
    match job.state:
        case JobState.QUEUED if job.slot is not None:
            return f"next: attempt {job.attempt} starts on {job.slot}"
        case JobState.QUEUED:
            return f"next: {job.detail or line.FREE_SLOT}{f' ({line.words(place)})' if place else ''}"
        case JobState.WAITING:
            left_s = max(0, (job.retry_at_ms or now_ms) - now_ms) / 1000
            return f"next: attempt {job.attempt + 1} in {span(left_s)}, from {_start(job)}"
        case JobState.PAUSED:
            return f"next: nothing until `trackside resume {job.id}`, which goes on from {_start(job)}"
        case JobState.PAUSING:
            return "next: it saves at its next step and is paused then"
        case JobState.CANCELLING:
            return "next: it ends at its next step, or is killed when its grace is over"
        case JobState.RUNNING if newest is not None and newest.state is AttemptState.ENDED:
            return "next: the supervisor decides about the attempt that has ended"
        case JobState.RUNNING:
            return f"next: attempt {job.attempt} runs on {job.slot or 'its slot'}; should it die, it goes on from " + (
                _start(job)
            )
        case JobState.SUCCEEDED:
            return "it is done"
    slow = "; if it was only slow, give it a longer --stall-limit" if job.reason is Reason.STALLED else ""
    return f"it is over; `trackside retry {job.id}` does it again, from {_start(job)}{slow}"


def obstacles(
    job: Job, slots: Iterable[Slot], breakers: Mapping[str, Breaker], beats: Mapping[str, Beat | None]
) -> list[str]:
    """What keeps a queued job off each slot, one sentence a slot; `beats` are by `<role>:<name>`."""
    found = [f"{slot.id} {_obstacle(job, slot, breakers.get(slot.id), beats)}" for slot in slots]
    return found or ["there is no slot: `trackside trainer` or `trackside up` offers a machine's"]


def _obstacle(job: Job, slot: Slot, breaker: Breaker | None, beats: Mapping[str, Beat | None]) -> str:
    beat, agent = beats.get(f"{Role.WORKER}:{slot.id}"), beats.get(f"{Role.AGENT}:{slot.host}")
    held = job.checkpoints[0] if job.checkpoints else None
    if job.spec.device not in ("any", slot.kind):
        return f"is a {slot.kind} slot, and it asks for a {job.spec.device}"
    if job.spec.slot not in (None, slot.id):
        return f"is not {job.spec.slot}, which it asks for"
    if held is not None and held.storage != slot.storage:
        return f"cannot read its checkpoint {held.name}, which lies on another host"
    if beat is None:
        return "is silent: its worker is not heard"
    if slot.cordoned:
        why = f" ({slot.cordon_reason})" if slot.cordon_reason else ""
        return f"is cordoned{why}: `trackside uncordon {slot.id}` puts it back"
    blocked = line.blocked_by(slot, beat)
    if blocked is not None and beat.job is None:
        return f"is blocked: {blocked}"
    if breaker is not None and breaker.state is not BreakerState.CLOSED:
        return f"rests, since {len(breaker.failed)} different jobs crashed on it"
    if beat.stopping or (agent is not None and agent.stopping):
        return "is stopping"
    return f"is busy with {beat.job}" if beat.job is not None else "is free: the supervisor gives it out"


def _start(job: Job) -> str:
    return f"step {job.checkpoints[0].step}" if job.checkpoints else "the beginning"


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
