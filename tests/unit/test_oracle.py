"""The oracle finds each broken promise when it is planted, and nothing in a history that is in order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from histories import (
    BROKEN,
    GOOD,
    JOB,
    SAMPLES,
    R,
    attempt,
    changed_event,
    event,
    expecting,
    with_event,
)
from trackside.models import Event, EventKind, JobState, Reason
from trackside.oracle import Files, History, JobHistory, Rules, Sample, check, measure


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


@pytest.mark.parametrize("name", BROKEN)
def test_a_planted_violation_is_found(name: str) -> None:
    assert BROKEN[name].invariant in judged(BROKEN[name].plant(GOOD))


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
