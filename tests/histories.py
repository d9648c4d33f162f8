"""A run in order, as the oracle sees it, and ways to change it."""

from __future__ import annotations

from dataclasses import replace

from trackside.models import (
    Attempt,
    AttemptState,
    Batch,
    CheckpointRef,
    Event,
    EventKind,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
)
from trackside.oracle import Entry, Expected, JobHistory, Proof, Sample

JOB = "train-1"
Q, R, W, S = JobState.QUEUED, JobState.RUNNING, JobState.WAITING, JobState.SUCCEEDED
SERIES: dict[str, dict[int, float | str]] = {"loss": {1: 0.5, 2: 0.4, 3: 0.3, 4: 0.2}}


def event(kind: EventKind, at_ms: int, attempt: int | None = None, **fields: object) -> Event:
    return Event(kind=kind, at_ms=at_ms, job=JOB, attempt=attempt, **fields)  # type: ignore[arg-type]  # test data


def attempt(number: int, reason: Reason, last_step: int, resumed_step: int | None = None) -> Attempt:
    outcome = Outcome(reason=reason, last_step=last_step)
    return Attempt(
        job=JOB, number=number, state=AttemptState.ENDED, slot="s", host="h", assigned_at_ms=0, outcome=outcome,
        resumed_step=resumed_step,
    )  # fmt: skip


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
REF = CheckpointRef(name="step-2", step=2, attempt=1, digest="d", storage="disk")
GOOD = JobHistory(
    job=Job(
        id=JOB, name="train", state=S, spec=JobSpec(program=Program(kind="script", target="train.py")),
        created_at_ms=1000, changed_at_ms=2010, attempt=2, reason=Reason.SUCCEEDED, checkpoints=(REF,),
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
