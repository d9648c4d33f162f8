"""When a server counts as older than what was seen on it, and what a job's records must then be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makers import a_checkpoint, a_job, an_attempt, an_event
from trackside.bus.keys import EVENTS_MAXLEN
from trackside.models import (
    Attempt,
    AttemptState,
    CheckpointRef,
    Event,
    EventKind,
    JobState,
    Outcome,
    Reason,
)
from trackside.restoring import Held
from trackside_supervisor.older import Look, Verdict, ahead, judge, merge

LOOK = Look(seen="50-1", still_there=True, first="10-0", events=40, known={"a": 2}, there={"a": 2})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.WHOLE),
        ({"there": {"a": 3}}, Verdict.WHOLE),
        ({"seen": None, "still_there": False, "first": None, "events": 0, "known": {}}, Verdict.WHOLE),
        ({"seen": "0-0", "still_there": False, "first": None, "events": 0, "known": {}}, Verdict.WHOLE),
        ({"still_there": False, "first": None, "events": 0}, Verdict.OLDER),
        ({"still_there": False}, Verdict.OLDER),
        ({"still_there": False, "first": "51-0", "events": EVENTS_MAXLEN}, Verdict.TRIMMED),
        ({"still_there": False, "first": "51-0", "events": EVENTS_MAXLEN - 1}, Verdict.OLDER),
        ({"still_there": False, "first": "50-0", "events": EVENTS_MAXLEN}, Verdict.OLDER),
        ({"there": {"a": 1}}, Verdict.OLDER),
        ({"there": {"a": None}}, Verdict.OLDER),
        ({"there": {}}, Verdict.OLDER),
    ],
)
def test_a_server_is_older_when_it_lacks_what_was_seen(changes: dict[str, Any], verdict: Verdict) -> None:
    assert judge(replace(LOOK, **changes)) is verdict


def test_ids_are_compared_as_numbers() -> None:
    assert judge(replace(LOOK, seen="9-0", still_there=False, first="10-0", events=EVENTS_MAXLEN)) is Verdict.TRIMMED


def test_ahead_is_who_carries_more_than_the_record_says() -> None:
    there = {"a": 2, "b": 1, "c": None}
    assert ahead(there, [("a", 2), ("b", 2), ("c", 1), ("d", 4), ("b", 3)]) == {"b": 3, "c": 1, "d": 4}


def told(at_ms: int, kind: EventKind, number: int | None, by: str = "worker:s", **facts: Any) -> tuple[str, Event]:
    return f"{at_ms}-0", an_event(kind, at_ms, number, by=by, **facts)


# A life: submitted, given, claimed, a checkpoint, killed, given again, claimed, another checkpoint.
_LIFE = (
    told(1, EventKind.SUBMITTED, None, new=JobState.QUEUED),
    told(2, EventKind.ASSIGNED, 1, by="supervisor:x"),
    told(3, EventKind.STARTED, 1),
    told(3, EventKind.TRANSITION, 1, cause="worker claimed it", old=JobState.QUEUED, new=JobState.RUNNING),
    told(4, EventKind.CHECKPOINT, 1, data={"name": "step-20-a1", "step": 20}),
    told(5, EventKind.ENDED, 1, cause="killed"),
    told(
        6, EventKind.TRANSITION, 1, by="supervisor:x", cause="retry at once", old=JobState.RUNNING, new=JobState.QUEUED
    ),
    told(7, EventKind.ASSIGNED, 2, by="supervisor:x"),
    told(8, EventKind.STARTED, 2),
    told(8, EventKind.TRANSITION, 2, cause="worker claimed it", old=JobState.QUEUED, new=JobState.RUNNING),
    told(9, EventKind.CHECKPOINT, 2, data={"name": "step-40-a1", "step": 40}),
)
LIFE = tuple((f"{event.at_ms}-{at}", event) for at, (_, event) in enumerate(_LIFE))


def at(count: int) -> Held:
    """The job after so many of its events."""
    state, number, slot = JobState.QUEUED, 0, None
    checkpoints: list[CheckpointRef] = []
    attempts: dict[int, Attempt] = {}
    for _, event in LIFE[:count]:
        match event.kind:
            case EventKind.ASSIGNED:
                number, slot = event.attempt or 0, "s"
                attempts[number] = an_attempt(number, slot="s", assigned_at_ms=event.at_ms)
            case EventKind.STARTED:
                attempts[number] = replace(attempts[number], state=AttemptState.RUNNING, worker_pid=7)
            case EventKind.TRANSITION:
                state = event.new or state
            case EventKind.CHECKPOINT:
                checkpoints.insert(0, a_checkpoint(event.data["step"]))
            case EventKind.ENDED:
                slot = None
                attempts[number] = replace(
                    attempts[number], state=AttemptState.ENDED, outcome=Outcome(reason=Reason.KILLED)
                )
    job = a_job(at_ms=1, state=state, attempt=number, slot=slot, checkpoints=tuple(checkpoints))
    return Held(job=job, attempts=attempts, history=LIFE[:count])


@given(st.integers(1, len(LIFE)), st.integers(1, len(LIFE)))
def test_whatever_the_server_fell_back_to_the_ledgers_records_come_back(ours: int, theirs: int) -> None:
    merged = merge(at(ours), at(theirs))
    if theirs >= ours:
        assert merged is None, "a server that has more is left alone"
    else:
        assert merged is not None
        assert merged.held == at(ours)
        assert (merged.gap.lost_events, merged.more, merged.asked) == (ours - theirs, (), ())


def test_a_job_that_the_server_lost_comes_back_whole() -> None:
    merged = merge(at(9), None)
    assert merged is not None
    assert (merged.held, merged.gap.lost_events) == (at(9), 9)


def since(base: int, *events: tuple[str, Event], **changes: Any) -> Held:
    """The server after it fell back to `base` events, and what happened on it since then."""
    held = at(base)
    attempts = changes.pop("attempts", held.attempts)
    return Held(job=replace(held.job, **changes), attempts=attempts, history=(*held.history, *events))


def test_an_attempt_that_ended_meanwhile_stays_ended() -> None:
    back = at(10)
    ended = replace(back.attempts[2], state=AttemptState.ENDED, outcome=Outcome(reason=Reason.SUCCEEDED))
    event = told(20, EventKind.ENDED, 2, cause="succeeded")
    theirs = since(10, event, slot=None, reason=Reason.SUCCEEDED, ran_ms=99, attempts={**back.attempts, 2: ended})
    merged = merge(at(11), theirs)
    assert merged is not None
    assert merged.held.attempts[2] == ended
    assert (merged.held.job.slot, merged.held.job.ran_ms) == (None, 99)
    assert merged.held.job.checkpoints == at(11).job.checkpoints
    assert merged.more == (event[1],)


def test_a_checkpoint_that_was_told_again_is_there_once() -> None:
    again = told(20, EventKind.CHECKPOINT, 2, data={"name": "step-40-a1", "step": 40})
    new = told(21, EventKind.CHECKPOINT, 2, data={"name": "step-60-a1", "step": 60})
    merged = merge(at(11), since(10, again, new, checkpoints=(a_checkpoint(60), a_checkpoint(40), a_checkpoint(20))))
    assert merged is not None
    assert [found.step for found in merged.held.job.checkpoints] == [60, 40, 20]
    assert merged.more == (new[1],)


@pytest.mark.parametrize(
    "event",
    [
        told(20, EventKind.RESTORED, 2, cause="restored", data={"gone": ["step-20-a1"]}),
        told(20, EventKind.NOTE, 2, cause="checkpoint damaged", data={"name": "step-20-a1", "gone": ["step-20-a1"]}),
        told(20, EventKind.CHECKPOINT, 2, data={"name": "step-60-a1", "step": 60, "gone": ["step-20-a1"]}),
    ],
)
def test_a_checkpoint_that_was_found_gone_meanwhile_stays_off_the_record(event: tuple[str, Event]) -> None:
    new = (a_checkpoint(60),) if event[1].kind is EventKind.CHECKPOINT else ()
    inherited = a_checkpoint(20, 0, name="step-20-a1", job="other")  # of the same name, and still there
    ours = at(11)
    ours = replace(ours, job=replace(ours.job, checkpoints=(*ours.job.checkpoints, inherited)))
    merged = merge(ours, since(10, event, checkpoints=(*new, inherited)))
    assert merged is not None
    assert merged.held.job.checkpoints == (*new, a_checkpoint(40), inherited)


def test_a_claim_that_was_made_meanwhile_counts() -> None:
    claimed = replace(at(8).attempts[2], state=AttemptState.RUNNING, worker_pid=7)
    events = (
        told(20, EventKind.STARTED, 2),
        told(20, EventKind.TRANSITION, 2, cause="worker claimed it", old=JobState.QUEUED, new=JobState.RUNNING),
    )
    lagging = Held(job=at(8).job, attempts=at(8).attempts, history=(*at(8).history, told(8, EventKind.NOTE, 2)))
    theirs = since(8, *events, state=JobState.RUNNING, attempts={**at(8).attempts, 2: claimed})
    merged = merge(lagging, theirs)
    assert merged is not None
    assert merged.held.job.state is JobState.RUNNING
    assert merged.held.attempts[2] == claimed
    assert [event.kind for event in merged.more] == [EventKind.STARTED, EventKind.TRANSITION]


def test_what_an_older_attempt_did_meanwhile_is_dropped() -> None:
    theirs = since(5, told(20, EventKind.STARTED, 1), told(21, EventKind.CHECKPOINT, 1, data={"name": "x", "step": 30}))
    merged = merge(at(11), theirs)
    assert merged is not None
    assert merged.held == at(11)
    assert merged.more == ()


def test_what_people_asked_meanwhile_is_asked_again() -> None:
    wish = told(20, EventKind.TRANSITION, 1, by="cli:me", cause="cancel requested", new=JobState.CANCELLING)
    merged = merge(at(11), since(4, wish, state=JobState.CANCELLING))
    assert merged is not None
    assert merged.asked == (("cancel requested", "cli:me"),)
    assert merged.held.job.state is JobState.RUNNING


def test_a_job_that_another_supervisor_has_led_on_is_left_alone() -> None:
    moved = told(20, EventKind.TRANSITION, 2, by="supervisor:y", cause="host fault", new=JobState.QUEUED)
    assert merge(at(11), since(10, moved, state=JobState.QUEUED)) is None


def test_a_number_that_was_given_out_is_known_even_before_its_record_was_seen() -> None:
    ours = at(7)
    ours = Held(job=replace(ours.job, attempt=2, slot="s"), attempts=ours.attempts, history=ours.history)
    merged = merge(ours, at(7))
    assert merged is not None
    assert merged.held.job.attempt == 2
    assert merged.held.attempts[2].state is AttemptState.ASSIGNED
