"""Silence and placement: who is lost, who is only unseen, and which slot gets which job."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from makers import SLOT, a_checkpoint, a_job, an_attempt
from trackside.models import (
    Attempt,
    AttemptState,
    Beat,
    Reason,
    Role,
)
from trackside_supervisor.placement import free_slots, place
from trackside_supervisor.watch import Limits, Sight, lost

LIMITS = Limits(margin_ms=1000, claim_ms=9000)


def running(**facts: Any) -> Attempt:
    return an_attempt(**{"state": AttemptState.RUNNING, "started_at_ms": 0, "worker_pid": 10, **facts})


def a_beat(pid: int = 10, started_at_ms: int = 0, job: str | None = "j", stopping: bool = False) -> Beat:
    return Beat(
        role=Role.WORKER, name="h-cpu0", host="h", pid=pid, started_at_ms=started_at_ms, at_ms=0, job=job,
        slot="h-cpu0", stopping=stopping,
    )  # fmt: skip


def an_agent(stopping: bool) -> Beat:
    return Beat(role=Role.AGENT, name="h", host="h", pid=9, started_at_ms=0, at_ms=0, stopping=stopping)


def a_look(now_ms: int, deadline_ms: int | None, beat: Beat | None = None, clear: bool = True) -> Sight:
    deadlines = {} if deadline_ms is None else {"worker:h-cpu0": deadline_ms}
    return Sight(now_ms=now_ms, deadlines=deadlines, beats={"worker:h-cpu0": beat}, clear=clear)


def test_an_attempt_that_its_idle_worker_is_done_with_is_lost_and_no_sooner_than_a_claim_takes() -> None:
    idle = a_beat(job=None)
    loss = lost(a_job(), running(started_at_ms=1000), a_look(11_000, 20_000, idle), LIMITS)
    assert loss is not None
    assert (loss.rule, loss.outcome.reason) == ("not carried", Reason.LOST)
    assert lost(a_job(), running(started_at_ms=2000), a_look(11_000, 20_000, idle), LIMITS) is None
    assert lost(a_job(), running(started_at_ms=1000), a_look(11_000, 20_000, a_beat(job="j")), LIMITS) is None
    assert lost(a_job(), running(started_at_ms=1000), a_look(11_000, 20_000, idle, clear=False), LIMITS) is None


def test_a_worker_within_its_deadline_and_margin_is_not_lost() -> None:
    assert lost(a_job(), running(), a_look(21_000, 20_000, a_beat()), LIMITS) is None


def test_a_worker_past_deadline_and_margin_is_lost() -> None:
    loss = lost(a_job(), running(), a_look(21_001, 20_000), LIMITS)
    assert loss is not None
    assert (loss.rule, loss.outcome.reason, loss.outcome.noticed_after_ms) == ("silent host", Reason.LOST, 1001)


@pytest.mark.parametrize(("agent_at_ms", "rule"), [(17_000, "silent host"), (18_001, "worker silent")])
def test_a_worker_that_is_silent_beside_an_agent_that_is_heard_is_told_from_a_silent_host(
    agent_at_ms: int, rule: str
) -> None:
    """The worker was heard at 16,000 ms for the last time, and 4,000 ms are allowed."""
    look = a_look(21_001, 20_000)
    deadlines = {**look.deadlines, "agent:h": agent_at_ms + 4000}
    agent = replace(an_agent(stopping=False), at_ms=agent_at_ms)
    loss = lost(a_job(), running(), replace(look, deadlines=deadlines, beats={"agent:h": agent}), LIMITS)
    assert loss is not None
    assert (loss.rule, loss.outcome.reason) == (rule, Reason.LOST)
    assert "its worker stands still or is cut off" in (loss.outcome.detail or "") or rule == "silent host"


def test_who_has_not_seen_clearly_for_long_enough_judges_nobody() -> None:
    assert lost(a_job(), running(), a_look(900_000, 20_000, clear=False), LIMITS) is None


def test_an_ended_attempt_is_never_lost() -> None:
    assert lost(a_job(), running(state=AttemptState.ENDED), a_look(900_000, 20_000), LIMITS) is None


@pytest.mark.parametrize(("now_ms", "is_lost"), [(9_000, False), (9_001, True)])
def test_an_attempt_nobody_claims_is_given_back_in_time(now_ms: int, is_lost: bool) -> None:
    attempt = running(state=AttemptState.ASSIGNED, started_at_ms=None, worker_pid=None)
    outcome = lost(a_job(), attempt, a_look(now_ms, now_ms + 4000, a_beat(job=None)), LIMITS)
    assert (outcome is not None) is is_lost


def test_an_attempt_whose_worker_was_replaced_long_ago_is_lost() -> None:
    fresh = a_look(50_000, 54_000, a_beat(pid=11, started_at_ms=45_000, job=None))
    assert lost(a_job(), running(), fresh, LIMITS) is None
    stale = a_look(60_000, 64_000, a_beat(pid=11, started_at_ms=45_000, job=None))
    assert lost(a_job(), running(), stale, LIMITS) is not None


def test_an_attempt_that_a_new_worker_has_just_claimed_is_not_judged_by_the_beat_of_the_one_before() -> None:
    before = a_look(60_000, 64_000, a_beat(pid=11, started_at_ms=1_000, job=None))
    assert lost(a_job(), running(started_at_ms=59_990), before, LIMITS) is None
    assert lost(a_job(), running(started_at_ms=30_000), before, LIMITS) is not None


def test_the_oldest_job_gets_the_slot_and_the_other_waits() -> None:
    pairs = place([a_job("late", 2), a_job("early", 1)], [SLOT])
    assert [(job.id, slot.id) for job, slot, _ in pairs] == [("early", "h-cpu0")]


def test_a_job_with_a_checkpoint_goes_only_where_it_can_be_read() -> None:
    job = a_job(checkpoints=(a_checkpoint(5, storage="other"),))
    assert place([job], [SLOT]) == []
    assert place([job], [SLOT, replace(SLOT, id="g-cpu0", storage="other")])[0][1].id == "g-cpu0"


def test_a_gpu_job_does_not_land_on_a_cpu_slot() -> None:
    job = a_job()
    job = replace(job, spec=replace(job.spec, device="gpu"))
    assert place([job], [SLOT]) == []
    assert place([job], [replace(SLOT, kind="gpu")]) != []


def test_a_slot_is_free_only_with_a_living_worker_that_takes_work_and_no_job() -> None:
    alive: dict[str, Beat | None] = {"worker:h-cpu0": a_beat(job=None)}
    assert free_slots([SLOT], [], alive) == [SLOT]
    assert free_slots([SLOT], [replace(a_job(), slot="h-cpu0")], alive) == []
    assert free_slots([replace(SLOT, cordoned=True)], [], alive) == []
    assert free_slots([replace(SLOT, blocked="process 7 holds its GPU")], [], alive) == []
    assert free_slots([SLOT], [], {"worker:h-cpu0": None}) == []
    assert free_slots([SLOT], [], {"worker:h-cpu0": a_beat(stopping=True)}) == []
    assert free_slots([SLOT], [], {"worker:h-cpu0": replace(a_beat(), blocked="its disk is full")}) == []


def test_a_slot_of_a_host_whose_agent_stops_is_given_nothing_while_its_worker_does_not_know_yet() -> None:
    worker: dict[str, Beat | None] = {"worker:h-cpu0": a_beat(job=None)}
    assert free_slots([SLOT], [], worker | {"agent:h": an_agent(stopping=True)}) == []
    assert free_slots([SLOT], [], worker | {"agent:h": an_agent(stopping=False)}) == [SLOT]
    assert free_slots([SLOT], [], worker | {"agent:other": an_agent(stopping=True)}) == [SLOT]


def test_workers_that_outlive_their_agent_are_given_work() -> None:
    assert free_slots([SLOT], [], {"worker:h-cpu0": a_beat(job=None), "agent:h": None}) == [SLOT]
