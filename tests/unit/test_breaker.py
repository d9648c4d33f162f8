"""A slot's circuit breaker: different jobs open it, one success starts anew, a self-test closes it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makers import SLOT, a_job
from trackside.ids import check_job_id
from trackside.models import Breaker, BreakerState, JobSpec, Reason, Slot
from trackside.retry import rest_s
from trackside_supervisor.breaker import CRASHES, Limits, observe, probe_id, probing, rested, takes, unanswered
from trackside_supervisor.placement import place

LIMITS = Limits(after=5, rest_s=lambda openings: 10.0 * openings)
NOW = 1_000_000
CLOSED = Breaker(slot="h-cpu0")


def after(*ends: tuple[str, Reason], start: Breaker = CLOSED) -> Breaker:
    breaker = start
    for job, reason in ends:
        breaker = observe(breaker, job, reason, LIMITS, NOW)
    return breaker


def crashed(count: int, start: Breaker = CLOSED) -> Breaker:
    return after(*((f"j{n}", Reason.KILLED) for n in range(count)), start=start)


def test_five_different_jobs_that_crash_in_a_row_open_it() -> None:
    assert crashed(4).state is BreakerState.CLOSED
    breaker = crashed(5)
    assert (breaker.state, breaker.until_ms, breaker.openings) == (BreakerState.OPEN, NOW + 10_000, 1)
    assert not takes(breaker, "j9")


def test_one_job_that_crashes_on_and_on_says_nothing_about_the_slot() -> None:
    assert after(*[("j", Reason.KILLED)] * 50).failed == ("j",)


def test_a_success_starts_the_count_anew() -> None:
    assert after(("x", Reason.SUCCEEDED), start=crashed(4)) == CLOSED


@pytest.mark.parametrize("reason", sorted(set(Reason) - CRASHES - {Reason.SUCCEEDED}))
def test_what_a_slot_cannot_cause_does_not_count(reason: Reason) -> None:
    assert after(("x", reason), start=crashed(4)) == crashed(4)


@pytest.mark.parametrize("reason", sorted(CRASHES))
def test_a_crash_after_a_newer_checkpoint_is_none_of_the_slots(reason: Reason) -> None:
    assert observe(crashed(4), "x", reason, LIMITS, NOW, progressed=True) == crashed(4)


def test_after_its_rest_the_self_test_decides() -> None:
    breaker = crashed(5)
    assert not rested(breaker, NOW + 9_999)
    assert rested(breaker, NOW + 10_000)
    tested = probing(breaker, probe_id(breaker))
    assert takes(tested, probe_id(breaker))
    assert not takes(tested, "j9")
    assert after((probe_id(breaker), Reason.SUCCEEDED), start=tested) == CLOSED
    worse = after((probe_id(breaker), Reason.USER_ERROR), start=tested)
    assert (worse.state, worse.openings, worse.until_ms) == (BreakerState.OPEN, 2, NOW + 20_000)
    assert probe_id(worse) != probe_id(breaker)
    gone = unanswered(tested, LIMITS, NOW)
    assert (gone.state, gone.openings) == (BreakerState.OPEN, 1)


def test_what_was_on_the_slot_before_does_not_close_it() -> None:
    assert after(("old", Reason.SUCCEEDED), start=crashed(5)) == crashed(5)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?-(cpu|gpu)[0-9]{1,3}", fullmatch=True), st.integers(0, 2**43))
def test_every_self_test_has_a_job_id(slot: str, until_ms: int) -> None:
    check_job_id(probe_id(Breaker(slot=slot, until_ms=until_ms)))


@given(st.integers(1, 40))
def test_the_rest_grows_between_its_bounds(openings: int) -> None:
    assert 10.0 <= rest_s(openings, first_s=10.0, max_s=300.0) <= min(300.0, 10.0 * 2 ** (openings - 1))


def test_an_open_slot_gets_no_job_and_a_probing_one_only_its_self_test() -> None:
    other = replace(SLOT, id="h-cpu1")
    breakers = {"h-cpu0": crashed(5)}
    assert [placed[:2] for placed in place([a_job()], [SLOT, other], breakers)] == [(a_job(), other)]
    probe = replace(a_job(probe_id(crashed(5)), at_ms=9), spec=pinned(SLOT))
    breakers = {"h-cpu0": probing(crashed(5), probe.id)}
    assert [placed[:2] for placed in place([a_job(), probe], [SLOT], breakers)] == [(probe, SLOT)]
    assert place([probe], [other], breakers) == [], "a self-test of one slot ran on another"


def pinned(slot: Slot) -> JobSpec:
    return replace(a_job().spec, slot=slot.id)
