"""The oracle: judges what a system left on its bus and on its disk against what Trackside promises. Pure.

`check` returns every broken promise in a history, `measure` says what a fault cost; `witness.py` takes histories down.
The drill, the fault tests and the soak use this one checker, so a promise is written down once:

    I1  a job ends once                        I8  the result is that of the undisturbed run
    I2  no submitted job is lost               I11 no process outlives its attempt
    I3  one writer at a time                   I12 retries wait within the backoff's envelope
    I4  attempts are numbered without a gap    I16 asked twice, done once
    I5  every step is there, and right         I17 the events fold to the record
    I6  accepted checkpoints verify
    I7  no more is redone than a checkpoint's interval

I17 holds of the supervisor's decisions too: each is made again from the inputs that its event tells.

Times (noticed, stepping again: I9, I10) are measured, never judged here: what is fast enough depends on the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from trackside.models import (
    Attempt,
    AttemptState,
    Batch,
    Event,
    EventKind,
    Job,
    JobState,
    Reason,
)

_GRACEFUL: Final = frozenset({Reason.PREEMPTED, Reason.PAUSED})
Value = float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A broken promise: which, of which job, and the facts."""

    invariant: str
    job: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.job or ''}: {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of a job's metrics stream, in the stream's order; no batch where it opens an attempt."""

    attempt: int
    sequence: int
    batch: Batch | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What looking at one accepted checkpoint on the disk gave."""

    name: str
    there: bool
    error: str | None = None  # why it does not verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the observer knows of a job beforehand; None where it does not matter."""

    states: frozenset[JobState] | None = None  # in which of them it may end
    redo_max: int | None = None  # steps that one failure may cost
    attempts_max: int | None = None
    reasons: tuple[frozenset[Reason], ...] | None = None  # of the first attempts, what each may end with
    series: dict[str, dict[int, Value]] | None = None  # of the undisturbed run
    summary: dict[str, Any] | None = None  # of the undisturbed run
    damaged: frozenset[str] = frozenset()  # checkpoints that the observer spoiled


@dataclass(frozen=True, kw_only=True, slots=True)
class JobHistory:
    """All that the bus holds of one job, and what the disk said about its checkpoints."""

    job: Job
    attempts: tuple[Attempt, ...] = ()
    events: tuple[Event, ...] = ()
    entries: tuple[Entry, ...] = ()
    proofs: tuple[Proof, ...] | None = None  # None: nobody looked
    expected: Expected = field(default_factory=Expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One look at the running system: states of the jobs seen, the live set, and how many entries each attempt has."""

    at_ms: int
    states: dict[str, JobState]
    live: frozenset[str]
    entries: dict[str, dict[int, int]] = field(default_factory=dict)  # job -> attempt -> entries of its metrics stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The settings that promises are measured by."""

    backoff_first_s: float = 2.0
    backoff_max_s: float = 300.0
    poison_after: int = 3
    # How the decision that an event tells differs from the one its inputs lead to (None: not); None: nobody looks.
    differs: Callable[[Event], str | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Everything that is judged together. `over`: the system was left to finish, so every job must have ended."""

    submitted: tuple[str, ...]
    jobs: tuple[JobHistory, ...]
    samples: tuple[Sample, ...] = ()
    slots: tuple[Event, ...] = ()  # what was told of slots
    orphans: tuple[str, ...] = ()  # processes of ended attempts, as `witness.orphans` found them
    rules: Rules = field(default_factory=Rules)
    over: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a fault cost a job. Times in s after it; None where the job went on without an end of its attempt."""

    noticed_s: float | None
    stepping_s: float | None  # until the first point logged after it, of a new attempt if there was one
    redone: int
    lost: int  # steps of the undisturbed run that are not there
    doubled: int  # points and starts that are there twice


# -- judging -----------------------------------------------------------------------------------------------------------


def check(history: History) -> list[Violation]:
    """Every broken promise in a history; pure."""
    found = [Violation(invariant="I2", job=None, what=what) for what in _none_lost(history)]
    found += [Violation(invariant="I11", job=None, what=what) for what in history.orphans]
    found += [Violation(invariant="I17", job=None, what=what) for what in _decisions(history.slots, history.rules)]
    for each in history.jobs:
        for invariant, rule in _RULES.items():
            found += [Violation(invariant=invariant, job=each.job.id, what=what) for what in rule(each, history)]
    return found


def _none_lost(history: History) -> Iterator[str]:
    there = {each.job.id for each in history.jobs}
    for job_id in history.submitted:
        if job_id not in there:
            yield f"{job_id} was submitted and is not on the bus"
    gone: dict[str, JobState] = {}
    for look in history.samples:
        for job_id, state in look.states.items():
            if state.terminal == (job_id in look.live):
                yield f"{job_id} is {state} and {'' if job_id in look.live else 'not '}listed as live, {look.at_ms} ms"
            if job_id in gone and state is not gone[job_id]:
                yield f"{job_id} was seen {gone[job_id]} and later {state}"
            if state.terminal:
                gone[job_id] = state
    seen: set[str] = set()
    for look in history.samples:
        for job_id in seen - look.states.keys():
            yield f"{job_id} had vanished from the bus at {look.at_ms} ms"
        seen |= look.states.keys()


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


def _single_writer(each: JobHistory, history: History) -> Iterator[str]:
    newest, last = 0, -1
    for entry in each.entries:
        if (entry.attempt, entry.sequence) <= (newest, last):
            yield f"entry {entry.attempt}-{entry.sequence} stands after {newest}-{last}"
        newest, last = entry.attempt, entry.sequence
    if newest > each.job.attempt:
        yield f"there are entries of attempt {newest}, the job's newest is {each.job.attempt}"
    current = 0
    for event in each.events:
        if event.kind is EventKind.ASSIGNED:
            current = event.attempt or 0
        elif event.attempt is not None and event.attempt < current:
            yield f"{event.kind} of attempt {event.attempt} after attempt {current} was opened"
    closed: dict[int, int] = {}
    for look in history.samples:
        counts = look.entries.get(each.job.id, {})
        for number, count in counts.items():
            if number in closed and count > closed[number]:
                yield f"attempt {number} wrote {count - closed[number]} entries after a newer one was opened"
            if number < max(counts):
                closed.setdefault(number, count)


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
    limit = each.expected.attempts_max
    if limit is not None and each.job.attempt > limit:
        reasons = [attempt.outcome.reason.value for attempt in each.attempts if attempt.outcome]
        yield f"{each.job.attempt} attempts, at most {limit} were due: {reasons}"
    for attempt, allowed in zip(each.attempts, each.expected.reasons or (), strict=False):
        if attempt.outcome is not None and attempt.outcome.reason not in allowed:
            yield f"attempt {attempt.number} ended {attempt.outcome.reason}, not {' or '.join(sorted(allowed))}"


def _series(each: JobHistory, history: History) -> Iterator[str]:
    twice = sorted(point for point, times in _points(each).items() if times > 1)
    if twice:
        yield f"{len(twice)} points are there twice, the first (series, attempt, step): {twice[0]}"
    if each.expected.series is None or each.job.state is not JobState.SUCCEEDED:
        return
    found = canonical(each)
    for name, expected in each.expected.series.items():
        here = found.get(name, {})
        missing = sorted(expected.keys() - here.keys())
        if missing:
            yield f"{name}: {len(missing)} steps are missing, the first {missing[0]}"
        more = sorted(here.keys() - expected.keys())
        if more:
            yield f"{name}: {len(more)} steps too many, the first {more[0]}"
        other = [step for step in sorted(expected.keys() & here.keys()) if not same(here[step], expected[step])]
        if other:
            step = other[0]
            yield f"{name}: {len(other)} values differ, the first at step {step}: {here[step]}, not {expected[step]}"


def _checkpoints(each: JobHistory, history: History) -> Iterator[str]:
    if each.proofs is None or not each.proofs:
        return
    for proof in each.proofs:
        if proof.error is not None and proof.name not in each.expected.damaged:
            yield f"{proof.name} was accepted and does not verify: {proof.error}"
    whole = [proof.name for proof in each.proofs if proof.there and proof.error is None]
    if not whole and not each.expected.damaged.issuperset(proof.name for proof in each.proofs):
        yield f"of {len(each.proofs)} accepted checkpoints none can be loaded"


def _bounded_redo(each: JobHistory, history: History) -> Iterator[str]:
    for before, steps in redone(each):
        graceful = before.outcome is not None and before.outcome.reason in _GRACEFUL
        limit = 0 if graceful else each.expected.redo_max
        if limit is not None and steps > limit:
            reason = before.outcome.reason if before.outcome else None
            yield f"{steps} steps were done again after attempt {before.number} ended {reason}; {limit} are allowed"


def _same_result(each: JobHistory, history: History) -> Iterator[str]:
    if each.expected.summary is None or each.job.state is not JobState.SUCCEEDED:
        return
    found = summary(each)
    for name, value in each.expected.summary.items():
        if name not in found or not same(found[name], value):
            yield f"{name} is {found.get(name)}, not {value}"


def _no_storm(each: JobHistory, history: History) -> Iterator[str]:
    rules = history.rules
    not_before_ms: int | None = None
    for event in each.events:
        if event.kind is EventKind.TRANSITION and event.new is JobState.WAITING:
            wait_s, barren = float(event.data.get("wait_s", 0.0)), int(event.data.get("barren", 0))
            most_s = min(rules.backoff_max_s, rules.backoff_first_s * 2**barren)
            if not 0 <= wait_s <= most_s + 0.001:
                yield f"it waited {wait_s} s after {barren + 1} failures, the envelope is {most_s} s"
            not_before_ms = event.at_ms + int(wait_s * 1000)
        elif event.kind is EventKind.ASSIGNED and not_before_ms is not None:
            if event.at_ms < not_before_ms - 1:
                yield f"attempt {event.attempt} was given out {not_before_ms - event.at_ms} ms before its backoff ended"
            not_before_ms = None
    barren = 0
    for attempt in each.attempts:
        reason = attempt.outcome.reason if attempt.outcome else None
        saved = any(event.kind is EventKind.CHECKPOINT and event.attempt == attempt.number for event in each.events)
        if saved or reason not in (Reason.KILLED, Reason.USER_ERROR, Reason.STALLED, Reason.CUDA_ERROR):
            barren = 0 if saved else barren
        else:
            barren += 1
    if barren > rules.poison_after:
        yield f"{barren} attempts in a row brought nothing, {rules.poison_after} are the limit"


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


def _folds(each: JobHistory, history: History) -> Iterator[str]:
    state: JobState | None = None
    number, slot, reason = 0, None, None
    accepted: set[str] = set()
    for event in each.events:
        if event.kind is EventKind.SUBMITTED:
            state = event.new
        elif event.kind is EventKind.TRANSITION and event.new is not None:
            if event.old is not state:
                yield f"a move from {event.old} to {event.new} while it was {state}"
            elif state is not None and not state.may_become(event.new):
                yield f"the move from {state} to {event.new} is not in the chart"
            state = event.new
        elif event.kind is EventKind.ASSIGNED:
            number, slot = event.attempt or 0, event.data.get("slot")
        elif event.kind is EventKind.ENDED:
            slot, reason = None, event.cause
        elif event.kind is EventKind.CHECKPOINT:
            accepted.add(str(event.data.get("name")))
    job = each.job
    folded = {"state": state, "attempt": number, "slot": slot, "reason": reason}
    stored = {"state": job.state, "attempt": job.attempt, "slot": job.slot, "reason": job.reason}
    for name, value in folded.items():
        if value != stored[name]:
            yield f"the events say {name} {value}, the record {stored[name]}"
    unknown = [ref.name for ref in job.checkpoints if ref.name not in accepted]
    if unknown:
        yield f"the record names checkpoints that no event accepted: {unknown}"
    yield from _decisions(each.events, history.rules)


def _decisions(events: Iterable[Event], rules: Rules) -> Iterator[str]:
    for event in events:
        broken = rules.differs(event) if rules.differs is not None else None
        if broken is not None:
            yield broken


_RULES: Final[dict[str, Callable[[JobHistory, History], Iterator[str]]]] = {
    "I1": _terminal_once,
    "I3": _single_writer,
    "I4": _attempts,
    "I5": _series,
    "I6": _checkpoints,
    "I7": _bounded_redo,
    "I8": _same_result,
    "I12": _no_storm,
    "I16": _idempotent,
    "I17": _folds,
}


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(each: JobHistory, fault_ms: int) -> Cost:
    """What a fault at `fault_ms` (the server's clock, on one host with the run) cost this job."""
    ended = [event for event in each.events if event.kind is EventKind.ENDED and event.at_ms >= fault_ms]
    hit = ended[0] if ended and ended[0].cause != Reason.SUCCEEDED else None
    times = [
        at_ms
        for entry in each.entries
        if entry.batch is not None and (hit is None or entry.attempt > (hit.attempt or 0))
        for at_ms in entry.batch.at_ms
        if at_ms >= fault_ms
    ]
    expected = (each.expected.series or {}) if each.job.state is JobState.SUCCEEDED else {}
    found = canonical(each)
    starts = Counter(event.attempt for event in each.events if event.kind is EventKind.STARTED)
    points = _points(each)
    return Cost(
        noticed_s=(hit.at_ms - fault_ms) / 1000 if hit is not None else None,
        stepping_s=(min(times) - fault_ms) / 1000 if times else None,
        redone=sum(steps for _, steps in redone(each)),
        lost=max((len(steps.keys() - found.get(name, {}).keys()) for name, steps in expected.items()), default=0),
        doubled=sum(points.values()) - len(points) + sum(starts.values()) - len(starts),
    )


def redone(each: JobHistory) -> Iterator[tuple[Attempt, int]]:
    """Each attempt that another followed, with the number of its steps that were done again."""
    logged: dict[int, int] = {}
    for entry in each.entries:
        if entry.batch is not None and entry.batch.steps:
            logged[entry.attempt] = max(logged.get(entry.attempt, 0), *entry.batch.steps)
    for before, after in zip(each.attempts, each.attempts[1:], strict=False):
        told = before.outcome.last_step if before.outcome else None
        last = max(told or 0, logged.get(before.number, 0))
        began = after.resumed_step is not None or after.number in logged
        if last and began:
            yield before, max(0, last - (after.resumed_step or 0))


def canonical(each: JobHistory) -> dict[str, dict[int, Value]]:
    """Each series with one value a step, the highest attempt's."""
    found: dict[str, dict[int, tuple[int, Value]]] = {}
    for entry in each.entries:
        if entry.batch is None:
            continue
        for name, values in entry.batch.series.items():
            series = found.setdefault(name, {})
            for step, value in zip(entry.batch.steps, values, strict=False):
                if value is not None and entry.attempt >= series.get(step, (0, 0.0))[0]:
                    series[step] = (entry.attempt, value)
    return {name: {step: series[step][1] for step in sorted(series)} for name, series in found.items()}


def summary(each: JobHistory) -> dict[str, Any]:
    """The run's results, as logged last."""
    merged: dict[str, Any] = {}
    for entry in each.entries:
        if entry.batch is not None:
            merged.update(entry.batch.summary)
    return merged


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same; not-a-number is the same as itself."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return bool(a == b)


def _points(each: JobHistory) -> Counter[tuple[str, int, int]]:
    """How often each (series, attempt, step) is there."""
    return Counter(
        (name, entry.attempt, step)
        for entry in each.entries
        if entry.batch is not None
        for name, values in entry.batch.series.items()
        for step, value in zip(entry.batch.steps, values, strict=False)
        if value is not None
    )
