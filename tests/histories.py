"""A run in order, as the oracle sees it, and ways to change it and to break each promise in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from makers import a_checkpoint, a_job, an_attempt, an_event
from trackside.models import (
    Attempt,
    AttemptState,
    Batch,
    Event,
    EventKind,
    JobState,
    Outcome,
    Reason,
)
from trackside.oracle import Entry, Expected, JobHistory, Proof, Sample

JOB = "train-1"
Q, R, W, S = JobState.QUEUED, JobState.RUNNING, JobState.WAITING, JobState.SUCCEEDED
SERIES: dict[str, dict[int, float | str]] = {"loss": {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}}


def event(kind: EventKind, at_ms: int, attempt: int | None = None, **fields: object) -> Event:
    return an_event(kind, at_ms, attempt, job=JOB, **fields)


def attempt(number: int, reason: Reason, last_step: int, resumed_step: int | None = None) -> Attempt:
    outcome = Outcome(reason=reason, last_step=last_step)
    ended = AttemptState.ENDED
    return an_attempt(number, job=JOB, state=ended, slot="s", outcome=outcome, resumed_step=resumed_step)


def entry(number: int, sequence: int, steps: tuple[int, ...] = (), summary: dict[str, str] | None = None) -> Entry:
    if not sequence:
        return Entry(attempt=number, sequence=0)
    values = tuple(SERIES["loss"][step] for step in steps)
    at_ms = tuple(1000 * number + step for step in steps)
    batch = Batch(steps=steps, at_ms=at_ms, series={"loss": values}, summary=summary or {})
    return Entry(attempt=number, sequence=sequence, batch=batch)


EVENTS = (
    event(EventKind.SUBMITTED, 1000, new=Q),
    event(EventKind.ASSIGNED, 1000, 1, data={"slot": "s"}),
    event(EventKind.STARTED, 1000, 1),
    event(EventKind.TRANSITION, 1000, 1, old=Q, new=R),
    event(EventKind.CHECKPOINT, 1003, 1, data={"name": "step-2", "step": 2}),
    event(EventKind.ENDED, 1010, 1, cause="killed"),
    event(EventKind.TRANSITION, 1010, 1, old=R, new=W, data={"wait_s": 0.5, "barren": 0}),
    event(EventKind.TRANSITION, 1510, 1, old=W, new=Q),
    event(EventKind.ASSIGNED, 1510, 2, data={"slot": "s"}),
    event(EventKind.STARTED, 1511, 2),
    event(EventKind.TRANSITION, 1511, 2, old=Q, new=R),
    event(EventKind.ENDED, 2010, 2, cause="succeeded"),
    event(EventKind.TRANSITION, 2010, 2, old=R, new=S),
)
REF = a_checkpoint(2, name="step-2")
GOOD = JobHistory(
    job=a_job(
        JOB, 1000, name="train", state=S, changed_at_ms=2010, attempt=2, reason=Reason.SUCCEEDED, checkpoints=(REF,)
    ),
    attempts=(attempt(1, Reason.KILLED, 3), attempt(2, Reason.SUCCEEDED, 4, resumed_step=2)),
    events=EVENTS,
    entries=(entry(1, 0), entry(1, 10, (1, 2, 3)), entry(2, 0), entry(2, 10, (3, 4), {"digest": "x"})),
    proofs=(Proof(name="step-2", there=True),),
    expected=Expected(
        states=frozenset({S}), redo_max=2, attempts_max=2, series=dict(SERIES), summary={"digest": "x"},
        reasons=(frozenset({Reason.KILLED}), frozenset({Reason.SUCCEEDED})),
    ),
)  # fmt: skip
SAMPLES = (
    Sample(at_ms=1, states={JOB: R}, live=frozenset({JOB}), entries={JOB: {1: 2}}),
    Sample(at_ms=2, states={JOB: R}, live=frozenset({JOB}), entries={JOB: {1: 2, 2: 1}}),
    Sample(at_ms=3, states={JOB: S}, live=frozenset(), entries={JOB: {1: 2, 2: 2}}),
)


def with_event(each: JobHistory, new: Event, at: int | None = None) -> JobHistory:
    events = list(each.events)
    events.insert(len(events) if at is None else at, new)
    return replace(each, events=tuple(events))


def without_event(each: JobHistory, at: int) -> JobHistory:
    return replace(each, events=tuple(event for index, event in enumerate(each.events) if index != at))


def changed_event(each: JobHistory, at: int, **fields: object) -> JobHistory:
    events = list(each.events)
    events[at] = replace(events[at], **fields)  # type: ignore[arg-type]  # test data
    return replace(each, events=tuple(events))


def expecting(each: JobHistory, **fields: object) -> JobHistory:
    return replace(each, expected=replace(each.expected, **fields))  # type: ignore[arg-type]  # test data


def with_entries(each: JobHistory, *entries: Entry) -> JobHistory:
    return replace(each, entries=entries)


class Broken(NamedTuple):
    """A way to break a promise in a job's history, and the promise."""

    invariant: str
    plant: Callable[[JobHistory], JobHistory]


BROKEN = {
    "ended twice": Broken("I1", lambda h: with_event(h, event(EventKind.TRANSITION, 2011, 2, old=S, new=S))),
    "never ended": Broken("I1", lambda h: replace(h, job=replace(h.job, state=R))),
    "an end without an event": Broken("I1", lambda h: without_event(h, -1 + len(EVENTS))),
    "runs on after its end": Broken("I1", lambda h: with_event(h, event(EventKind.STARTED, 2011, 3))),
    "another end than due": Broken("I1", lambda h: expecting(h, states=frozenset({JobState.FAILED}))),
    "a stale entry": Broken("I3", lambda h: with_entries(h, *h.entries, entry(1, 20, (4,)))),
    "an entry twice": Broken("I3", lambda h: with_entries(h, *h.entries, h.entries[-1])),
    "an entry of an unknown attempt": Broken("I3", lambda h: with_entries(h, *h.entries, entry(3, 0))),
    "a stale checkpoint": Broken("I3", lambda h: with_event(h, event(EventKind.CHECKPOINT, 1600, 1), at=10)),
    "a missing attempt": Broken("I4", lambda h: replace(h, attempts=h.attempts[1:])),
    "a start twice": Broken("I4", lambda h: with_event(h, event(EventKind.STARTED, 1512, 2), at=10)),
    "an end twice": Broken("I4", lambda h: with_event(h, event(EventKind.ENDED, 1011, 1, cause="lost"), at=6)),
    "two reasons for one end": Broken("I4", lambda h: changed_event(h, 5, cause="lost")),
    "an attempt left open": Broken(
        "I4", lambda h: replace(h, attempts=(replace(h.attempts[0], state=AttemptState.RUNNING), h.attempts[1])),
    ),
    "too many attempts": Broken("I4", lambda h: expecting(h, attempts_max=1)),
    "a wrong cause of death": Broken("I4", lambda h: expecting(h, reasons=(frozenset({Reason.LOST}),))),
    "a step twice in one attempt": Broken("I5", lambda h: with_entries(h, *h.entries, entry(2, 20, (4,)))),
    "a missing step": Broken("I5", lambda h: with_entries(h, *h.entries[:3], entry(2, 10, (3,), {"digest": "x"}))),
    "a wrong value": Broken("I5", lambda h: expecting(h, series={"loss": {**SERIES["loss"], 4: 9.0}})),
    "a step too many": Broken("I5", lambda h: expecting(h, series={"loss": {1: 0.5, 2: 0.4, 3: 0.3}})),
    "a damaged checkpoint": Broken("I6", lambda h: replace(h, proofs=(Proof(name="step-2", there=True, error="cut"),))),
    "no checkpoint left": Broken("I6", lambda h: replace(h, proofs=(Proof(name="step-2", there=False),))),
    "too much redone": Broken("I7", lambda h: expecting(h, redo_max=0)),
    "steps lost at a graceful stop": Broken(
        "I7", lambda h: replace(h, attempts=(attempt(1, Reason.PREEMPTED, 3), h.attempts[1])),
    ),
    "another result": Broken("I8", lambda h: expecting(h, summary={"digest": "y"})),
    "a wait beyond the envelope": Broken("I12", lambda h: changed_event(h, 6, data={"wait_s": 5.0, "barren": 0})),
    "a retry before its time": Broken("I12", lambda h: changed_event(h, 8, at_ms=1200)),
    "submitted twice": Broken("I16", lambda h: with_event(h, EVENTS[0], at=1)),
    "a checkpoint accepted twice": Broken("I16", lambda h: with_event(h, EVENTS[4], at=5)),
    "a move from nowhere": Broken("I17", lambda h: changed_event(h, 10, old=W)),
    "a move that is not legal": Broken("I17", lambda h: changed_event(h, 12, old=R, new=W)),
    "a record that no event made": Broken("I17", lambda h: replace(h, job=replace(h.job, attempt=3))),
    "a checkpoint that no event accepted": Broken("I17", lambda h: without_event(h, 4)),
    "a checkpoint that was found gone": Broken(
        "I17", lambda h: with_event(h, event(EventKind.RESTORED, 1512, 2, data={"gone": ["step-2"]}), at=11),
    ),
}  # fmt: skip
