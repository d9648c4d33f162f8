"""A job's life in plain words, from its record, its attempts and its history: pure.

Each sentence has its time. Checkpoints are told once an attempt, and an attempt's end with what was decided about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from trackside import line, wording
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
    Outcome,
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
    "timeout": "the time limit of the whole job is used up",
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
_STOOD: Final = "the process was "  # how the evidence of a hang begins


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """One thing that happened, or comes next (`at_ms` None)."""

    at_ms: int | None
    text: str
    attempt: int | None = None


def tell(
    job: Job,
    attempts: Iterable[Attempt],
    events: Iterable[Event],
    now_ms: int,
    *,
    place: int | None = None,
    parents: Mapping[str, Job | None] | None = None,
    unled: str | None = None,
) -> list[Sentence]:
    """The whole story, oldest first; the last sentence says what comes next.

    `place` is the job's in line, `parents` are the jobs it was to run after (None: gone; those left out: not known),
    `unled` is `line.unled`.
    """
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
    following = what_is_next(job, by_number.get(job.attempt), now_ms, place, parents=parents, unled=unled)
    told.append(Sentence(at_ms=None, text=following))
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
    ran_ms = wording.ran_ms(attempt, event.at_ms) if attempt is not None else None
    if ran_ms:  # 0: its process was never started
        parts.append(f"after {span(ran_ms / 1000)}")
    if outcome is not None and outcome.first_step is not None and outcome.last_step is not None:
        parts.append(f"having done steps {outcome.first_step} to {outcome.last_step}")
    early = wording.left_early(attempt)
    if early is not None:
        parts.append(f"it {early}")
    parts.append(f"its newest checkpoint is of step {max(saved)}" if saved else "it brought no checkpoint")
    if outcome is not None and outcome.seen_by:
        late = outcome.noticed_after_ms
        parts.append(f"seen by {outcome.seen_by}" + ("" if late is None else f" within {late} ms"))
    parts += filter(None, (_lost(event), _hung(event, outcome)))
    return "; ".join(parts)


def _hung(event: Event, outcome: Outcome | None) -> str | None:
    """What a hung process was seen to do, where that is not told yet, and where its stacks are."""
    if outcome is None or outcome.reason is not Reason.STALLED or not outcome.evidence:
        return None
    stood = outcome.evidence[0] if outcome.evidence[0].startswith(_STOOD) else ""
    seen = f"{stood}; " if stood and stood not in (outcome.detail or "") else ""
    return f"{seen}its stacks: `trackside show {event.job}`, `trackside logs {event.job} --attempt {event.attempt}`"


def _moved(event: Event) -> str | None:
    data = event.data
    if event.cause in _REQUESTS:
        who = "its worker" if event.cause == "pause refused" else event.by or "somebody"
        where = f", back at {data['from']}" if data.get("from") else ""
        why = f" ({data['detail']})" if event.cause == "pause refused" and data.get("detail") else ""
        return f"{who}: {_REQUESTS[event.cause]}{why}{where}; it is {event.new}"
    if event.cause not in RULES:
        return None
    text = f"decided: {event.new}, by the rule {event.cause!r}: {_case(event)}"
    numbers = _numbers(event)
    return f"{text} ({numbers})" if numbers else text


def _case(event: Event) -> str:
    """What the rule says, and where it has several cases which one it was."""
    data = event.data
    if event.cause != "retry with backoff" or "progressed" not in data:
        return RULES[event.cause or ""]
    cases = ["it brought no newer checkpoint"] if not data["progressed"] else []
    cases += ["memory was short on the host"] if data.get("reason") == Reason.OOM_HOST else []
    return f"{' and '.join(cases) or 'it ended badly'}; the wait grows each time"


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
        f"{wording.counted(failures, 'failure')} with {wording.counted(data.get('retries', 0), 'retry')}",
        f"{barren} in a row without a newer checkpoint, {data.get('poison_after')} are too many",
    ]
    if event.new is JobState.WAITING:
        parts.append(f"waits {span(data.get('wait_s', 0.0))}")
    return "; ".join(parts)


def what_is_next(
    job: Job,
    newest: Attempt | None,
    now_ms: int,
    place: int | None = None,
    *,
    parents: Mapping[str, Job | None] | None = None,
    unled: str | None = None,
) -> str:
    """What comes next for the job, and when; `parents` and `unled` are as in `tell`."""
    if job.state.terminal:
        return _over(job, newest, parents or {})
    waits = job.state in (JobState.QUEUED, JobState.WAITING) and job.slot is None
    ended = job.state is JobState.RUNNING and newest is not None and newest.state is AttemptState.ENDED
    return f"{_next(job, newest, now_ms, place)}{f'; {unled}' if unled and (waits or ended) else ''}"


def _next(job: Job, newest: Attempt | None, now_ms: int, place: int | None) -> str:
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
    return f"next: attempt {job.attempt} runs on {job.slot or 'its slot'}; should it die, it goes on from {_start(job)}"


def _over(job: Job, newest: Attempt | None, parents: Mapping[str, Job | None]) -> str:
    """What can be done about a job that has ended, in words that `trackside retry` accepts."""
    if job.state is JobState.SUCCEEDED:
        early = wording.left_early(newest)
        return f"it is done; it {early}" if early is not None else "it is done"
    for name in job.spec.after:
        parent = parents.get(name)
        if name in parents and parent is None:
            return f"it is over; {name}, which it was to run after, is no longer on the bus: submit it again without it"
        if parent is not None and parent.state in (JobState.FAILED, JobState.CANCELLED):
            asks = parent.attempt == 0 and bool(parent.spec.after)  # it may have failed with a parent of its own
            how = f"do as `trackside why {name}` says" if asks else f"`trackside retry {name}`"
            what = f"{name}, which it was to run after, {wording.became(parent.state)}"
            return f"it is over; {what}: {how}, then submit this one again with --after the new id"
    slow = "; if it was only slow, give it a longer --stall-limit" if job.reason is Reason.STALLED else ""
    return f"it is over; `trackside retry {job.id}` does it again, from {_start(job)}{slow}"


def obstacles(
    job: Job,
    slots: Iterable[Slot],
    breakers: Mapping[str, Breaker],
    beats: Mapping[str, Beat | None],
    now_ms: int,
) -> list[str]:
    """What keeps a queued job off each slot, one sentence a slot; `beats` are by `<role>:<name>`."""
    found = [f"{slot.id} {_obstacle(job, slot, breakers.get(slot.id), beats, now_ms)}" for slot in slots]
    return found or ["there is no slot: `trackside trainer` or `trackside up` offers a machine's"]


def _obstacle(job: Job, slot: Slot, breaker: Breaker | None, beats: Mapping[str, Beat | None], now_ms: int) -> str:
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
        return f"rests, since {len(breaker.failed)} different jobs crashed on it: {_rest(breaker, now_ms)}"
    if beat.stopping or (agent is not None and agent.stopping):
        return "is stopping"
    if beat.job is not None:
        return f"is busy with {beat.job}"
    unled = line.unled(beats)
    return "is free: the supervisor gives it out" if unled is None else f"is free, but {unled}"


def _rest(breaker: Breaker, now_ms: int) -> str:
    if breaker.state is BreakerState.PROBING:
        return "its self-test runs"
    return f"its self-test comes in {span(max(0, (breaker.until_ms or now_ms) - now_ms) / 1000)}"


def _start(job: Job) -> str:
    return f"step {job.checkpoints[0].step}" if job.checkpoints else "the beginning"


def span(seconds: float) -> str:
    """A length of time for people."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
