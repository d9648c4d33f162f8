"""The oracle finds each broken promise when it is planted, and nothing in a history that is in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from histories import (
    EVENTS,
    GOOD,
    JOB,
    SAMPLES,
    SERIES,
    R,
    S,
    W,
    attempt,
    changed_event,
    entry,
    event,
    expecting,
    with_entries,
    with_event,
    without_event,
)
from trackside.models import AttemptState, Event, EventKind, JobState, Reason
from trackside.oracle import Files, History, JobHistory, Proof, Rules, Sample, check, measure


def judged(each: JobHistory, samples: tuple[Sample, ...] = SAMPLES, **facts: object) -> set[str]:
    history = History(submitted=(JOB,), jobs=(each,), samples=samples, **facts)  # type: ignore[arg-type]  # test data
    return {violation.invariant for violation in check(history)}


def died(
    last: int, *, due: tuple[int, ...], reason: Reason = Reason.KILLED, saved: tuple[int, ...] = (2,)
) -> JobHistory:
    """Attempt 1 died after that step and attempt 2 went on from step 2; a checkpoint every 2 steps."""
    files = {1: Files(journal_bytes=0, output_bytes=0, saved=saved, due=due)}
    return expecting(replace(GOOD, attempts=(attempt(1, reason, last), GOOD.attempts[1]), files=files), redo_max=2)


def test_steps_done_while_a_checkpoint_was_on_its_way_may_be_redone() -> None:
    assert "I7" not in judged(died(5, due=(2, 4)))
    assert "I7" in judged(died(5, due=(2,)))  # nothing was on its way
    assert "I7" in judged(died(5, due=(2, 5)))  # it was due a step too late


def test_a_checkpoint_is_on_its_way_for_an_interval_at_most_unless_that_is_told() -> None:
    late = died(7, due=(2, 4, 6))
    assert "I7" in judged(late)
    slow = event(EventKind.NOTE, 1009, 1, data={"text": "steps have become slow"})
    assert "I7" in judged(with_event(late, slow, at=5))
    left_out = event(EventKind.NOTE, 1009, 1, data={"text": "the checkpoint of step 6 was left out"})
    assert "I7" not in judged(with_event(late, left_out, at=5))


def test_what_a_lost_host_had_written_and_could_not_tell_is_on_its_way() -> None:
    assert "I7" not in judged(died(5, due=(2, 4), saved=(2, 4), reason=Reason.LOST))
    assert "I7" in judged(died(5, due=(2, 4), saved=(2, 4)))


def test_a_history_in_order_breaks_no_promise() -> None:
    assert check(History(submitted=(JOB,), jobs=(GOOD,), samples=SAMPLES)) == []


PLANTED: dict[str, tuple[str, Callable[[JobHistory], JobHistory]]] = {
    "ended twice": ("I1", lambda h: with_event(h, event(EventKind.TRANSITION, 2011, 2, old=S, new=S))),
    "never ended": ("I1", lambda h: replace(h, job=replace(h.job, state=R))),
    "an end without an event": ("I1", lambda h: without_event(h, -1 + len(EVENTS))),
    "runs on after its end": ("I1", lambda h: with_event(h, event(EventKind.STARTED, 2011, 3))),
    "another end than due": ("I1", lambda h: expecting(h, states=frozenset({JobState.FAILED}))),
    "a stale entry": ("I3", lambda h: with_entries(h, *h.entries, entry(1, 20, (4,)))),
    "an entry twice": ("I3", lambda h: with_entries(h, *h.entries, h.entries[-1])),
    "an entry of an unknown attempt": ("I3", lambda h: with_entries(h, *h.entries, entry(3, 0))),
    "a stale checkpoint": ("I3", lambda h: with_event(h, event(EventKind.CHECKPOINT, 1600, 1), at=10)),
    "a missing attempt": ("I4", lambda h: replace(h, attempts=h.attempts[1:])),
    "a start twice": ("I4", lambda h: with_event(h, event(EventKind.STARTED, 1512, 2), at=10)),
    "an end twice": ("I4", lambda h: with_event(h, event(EventKind.ENDED, 1011, 1, cause="lost"), at=6)),
    "two reasons for one end": ("I4", lambda h: changed_event(h, 5, cause="lost")),
    "an attempt left open": (
        "I4", lambda h: replace(h, attempts=(replace(h.attempts[0], state=AttemptState.RUNNING), h.attempts[1])),
    ),
    "too many attempts": ("I4", lambda h: expecting(h, attempts_max=1)),
    "a wrong cause of death": ("I4", lambda h: expecting(h, reasons=(frozenset({Reason.LOST}),))),
    "a step twice in one attempt": ("I5", lambda h: with_entries(h, *h.entries, entry(2, 20, (4,)))),
    "a missing step": ("I5", lambda h: with_entries(h, *h.entries[:3], entry(2, 10, (3,), {"digest": "x"}))),
    "a wrong value": ("I5", lambda h: expecting(h, series={"loss": {**SERIES["loss"], 4: 9.0}})),
    "a step too many": ("I5", lambda h: expecting(h, series={"loss": {1: 0.5, 2: 0.4, 3: 0.3}})),
    "a damaged checkpoint": ("I6", lambda h: replace(h, proofs=(Proof(name="step-2", there=True, error="cut"),))),
    "no checkpoint left": ("I6", lambda h: replace(h, proofs=(Proof(name="step-2", there=False),))),
    "too much redone": ("I7", lambda h: expecting(h, redo_max=0)),
    "steps lost at a graceful stop": (
        "I7", lambda h: replace(h, attempts=(attempt(1, Reason.PREEMPTED, 3), h.attempts[1])),
    ),
    "another result": ("I8", lambda h: expecting(h, summary={"digest": "y"})),
    "a wait beyond the envelope": ("I12", lambda h: changed_event(h, 6, data={"wait_s": 5.0, "barren": 0})),
    "a retry before its time": ("I12", lambda h: changed_event(h, 8, at_ms=1200)),
    "submitted twice": ("I16", lambda h: with_event(h, EVENTS[0], at=1)),
    "a checkpoint accepted twice": ("I16", lambda h: with_event(h, EVENTS[4], at=5)),
    "a move from nowhere": ("I17", lambda h: changed_event(h, 10, old=W)),
    "a move that is not legal": ("I17", lambda h: changed_event(h, 12, old=R, new=W)),
    "a record that no event made": ("I17", lambda h: replace(h, job=replace(h.job, attempt=3))),
    "a checkpoint that no event accepted": ("I17", lambda h: without_event(h, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    invariant, plant = PLANTED[name]
    assert invariant in judged(plant(GOOD))


def test_four_barren_attempts_in_a_row_are_a_storm() -> None:
    attempts = tuple(attempt(number, Reason.KILLED, 1) for number in range(1, 6))  # the first one saved
    each = replace(GOOD, job=replace(GOOD.job, attempt=5), attempts=attempts)
    assert "I12" in judged(each)


def test_who_resumes_a_paused_job_need_not_wait_for_its_backoff() -> None:
    early = changed_event(GOOD, 8, at_ms=1200)
    assert "I12" in judged(early)
    asked = event(EventKind.TRANSITION, 1100, 1, old=JobState.PAUSED, new=JobState.QUEUED, cause="resume requested")
    assert "I12" not in judged(with_event(early, asked, at=7))


@pytest.mark.parametrize(("host_faults", "wait_s", "fits"), [(1, 2.0, True), (1, 2.1, False), (3, 8.0, True)])
def test_ends_from_outside_wait_by_their_own_count(host_faults: int, wait_s: float, fits: bool) -> None:
    data = {"wait_s": wait_s, "barren": 5, "struck": True, "host_faults": host_faults}
    waited = changed_event(changed_event(GOOD, 6, data=data), 8, at_ms=1010 + int(wait_s * 1000))
    assert ("I12" not in judged(waited)) is fits


def test_lost_vanished_and_resurrected_jobs_are_found() -> None:
    assert [v.invariant for v in check(History(submitted=("other",), jobs=()))] == ["I2"]
    vanished = (SAMPLES[0], Sample(at_ms=2, states={}, live=frozenset()))
    resurrected = (SAMPLES[2], SAMPLES[1])
    unlisted = (Sample(at_ms=1, states={JOB: R}, live=frozenset()),)
    for samples in (vanished, resurrected, unlisted):
        assert "I2" in judged(GOOD, samples)


def test_entries_that_an_overtaken_attempt_adds_are_found() -> None:
    late = replace(SAMPLES[2], entries={JOB: {1: 3, 2: 2}})
    assert "I3" in judged(GOOD, (*SAMPLES[:2], late))


def test_a_decision_that_does_not_follow_from_its_inputs_is_found() -> None:
    def differs(event: Event) -> str | None:
        return "another slot" if event.kind in (EventKind.ASSIGNED, EventKind.SLOT) else None

    rules = Rules(differs=differs)
    assert judged(GOOD, rules=rules) == {"I17"}
    silent = replace(GOOD, events=tuple(each for each in GOOD.events if each.kind is not EventKind.ASSIGNED))
    told = {each.what for each in check(History(submitted=(JOB,), jobs=(silent,), rules=rules))}
    assert "another slot" not in told
    moved = Event(kind=EventKind.SLOT, at_ms=1, cause="breaker open")
    found = check(History(submitted=(JOB,), jobs=(silent,), rules=rules, slots=(moved,)))
    assert "another slot" in {each.what for each in found}


def test_orphans_are_told() -> None:
    assert judged(GOOD, orphans=("process 5 of attempt 1",)) == {"I11"}


def test_what_a_kill_cost_is_read_off_the_history() -> None:
    cost = measure(GOOD, 1005)
    assert cost.noticed_s == 0.005
    assert cost.stepping_s == pytest.approx((2003 - 1005) / 1000)
    assert (cost.redone, cost.lost, cost.doubled) == (1, 0, 0)


def test_a_fault_that_ended_nothing_was_not_noticed_and_costs_nothing() -> None:
    cost = measure(GOOD, 2004)
    assert cost.noticed_s is None
    assert cost.stepping_s == 0.0
