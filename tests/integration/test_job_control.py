"""What people ask of jobs and slots, against a real server: each request has one effect, in every state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from makers import SLOT, SPEC, a_checkpoint
from store_world import events_of, moved, push_nothing, started
from trackside.bus import keys, streams
from trackside.bus.client import connect
from trackside.errors import Fenced, IllegalTransition, InvalidJob, NotFound, ServerBehind
from trackside.models import (
    Breaker,
    BreakerState,
    EventKind,
    Job,
    JobState,
    Outcome,
    Reason,
)
from trackside.store import Store


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["supervisor"]), by="supervisor:test")


@pytest.fixture
def person(bus_urls: Mapping[str, str]) -> Store:
    """The store as the command line has it."""
    return Store(connect(bus_urls["submitter"]), by="cli:test")


def brought_to(store: Store, state: JobState, job_id: str = "j") -> Job:
    """A job in this state, as real writers would bring it there."""
    if state is JobState.QUEUED:
        return store.submit(job_id, job_id, SPEC)
    started(store, job_id)
    if state is JobState.RUNNING:
        return store.job(job_id)
    if state in (JobState.PAUSING, JobState.PAUSED):
        store.pause(job_id)
    elif state is JobState.CANCELLING:
        return store.cancel(job_id)
    if state is JobState.PAUSING:
        return store.job(job_id)
    store.end_attempt(job_id, 1, Outcome(reason=Reason.KILLED))
    return moved(store, job_id, state)


CANCEL_LEADS_TO = {
    JobState.QUEUED: JobState.CANCELLED,
    JobState.WAITING: JobState.CANCELLED,
    JobState.PAUSED: JobState.CANCELLED,
    JobState.RUNNING: JobState.CANCELLING,
    JobState.PAUSING: JobState.CANCELLING,
    JobState.CANCELLING: JobState.CANCELLING,
    JobState.CANCELLED: JobState.CANCELLED,
}


@pytest.mark.parametrize("state", list(JobState))
def test_cancel_has_one_effect_in_every_state(store: Store, state: JobState) -> None:
    before = brought_to(store, state)
    assert before.state is state
    wanted = CANCEL_LEADS_TO.get(state)
    if wanted is None:  # succeeded or failed: over already
        with pytest.raises(IllegalTransition):
            store.cancel("j")
        assert store.job("j") == before
        return
    assert store.cancel("j").state is wanted
    events = events_of(store, "j")
    assert store.cancel("j").state is wanted
    assert events_of(store, "j") == events, "asking again did something"


@pytest.mark.parametrize("state", list(JobState))
def test_pause_has_one_effect_in_every_state(store: Store, state: JobState) -> None:
    before = brought_to(store, state)
    if state.terminal or state is JobState.CANCELLING:
        with pytest.raises(IllegalTransition):
            store.pause("j")
        assert store.job("j") == before
        return
    runs = state in (JobState.RUNNING, JobState.PAUSING)
    wanted = JobState.PAUSING if runs else JobState.PAUSED
    assert store.pause("j").state is wanted
    assert store.pause("j").state is wanted
    assert store.job("j").retry_at_ms is None


def test_an_attempt_that_was_given_but_not_claimed_can_be_paused(store: Store) -> None:
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, push_nothing)
    assert store.pause("j").state is JobState.PAUSING
    assert store.claim("j", 1, worker_pid=10).state is JobState.PAUSING


def test_a_script_that_cannot_pause_runs_on_and_says_why(store: Store) -> None:
    started(store)
    store.pause("j")
    job = store.refuse_pause("j", 1, "its script has no step boundary")
    assert (job.state, job.detail) == (JobState.RUNNING, "its script has no step boundary")
    assert store.refuse_pause("j", 1, "again") == job
    store.cancel("j")
    assert store.refuse_pause("j", 1, "late").state is JobState.CANCELLING
    with pytest.raises(Fenced):
        store.refuse_pause("j", 0, "of an older attempt")
    with pytest.raises(ServerBehind):
        store.refuse_pause("j", 2, "of one that this server never gave out")


def test_a_pause_that_is_still_awaited_can_be_taken_back(store: Store) -> None:
    started(store)
    store.pause("j")
    assert store.resume("j").state is JobState.RUNNING
    assert store.resume("j").state is JobState.RUNNING
    causes = [event.cause for event in events_of(store, "j") if event.new is not None]
    assert causes[-2:] == ["pause requested", "resume requested"]
    store.end_attempt("j", 1, Outcome(reason=Reason.PAUSED))  # it had obeyed by then, and goes on at once
    assert moved(store, "j", JobState.QUEUED).slot is None


def test_a_job_s_running_time_is_that_of_its_processes(store: Store) -> None:
    started(store)
    job = store.end_attempt("j", 1, Outcome(reason=Reason.PREEMPTED, ran_ms=1500))
    assert job.ran_ms == 1500
    moved(store, "j", JobState.QUEUED)
    store.assign("j", SLOT, push_nothing)
    store.claim("j", 2, worker_pid=11)
    assert store.end_attempt("j", 2, Outcome(reason=Reason.PREEMPTED, ran_ms=0)).ran_ms == 1500


def paused_with_checkpoints(store: Store) -> Job:
    started(store)
    for step in (10, 20, 30):
        store.accept_checkpoint("j", 1, a_checkpoint(step))
    store.pause("j")
    store.end_attempt("j", 1, Outcome(reason=Reason.PAUSED))
    return moved(store, "j", JobState.PAUSED)


def test_a_paused_job_goes_back_to_a_named_checkpoint_and_the_record_tells(store: Store) -> None:
    paused_with_checkpoints(store)
    job = store.resume("j", "step-20-a1")
    assert [found.step for found in job.checkpoints] == [20, 10]
    assert job.state is JobState.QUEUED
    last = events_of(store, "j")[-1]
    assert (last.data["from"], last.data["dropped"]) == ("step-20-a1", ["step-30-a1"])
    assert store.resume("j", "step-20-a1") == job  # a second time changes nothing
    store.assign("j", SLOT, push_nothing)
    store.claim("j", 2, worker_pid=11)
    assert store.accept_checkpoint("j", 2, a_checkpoint(25, 2)).checkpoints[0].step == 25


def test_only_an_accepted_checkpoint_of_a_paused_job_can_be_gone_back_to(store: Store) -> None:
    before = paused_with_checkpoints(store)
    with pytest.raises(NotFound, match="step-30-a1, step-20-a1, step-10-a1"):
        store.resume("j", "step-15-a1")
    assert store.job("j") == before
    assert store.resume("j").checkpoints == before.checkpoints
    with pytest.raises(IllegalTransition, match="pause it first"):
        store.resume("j", "step-10-a1")


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED])
def test_a_retry_is_a_new_job_that_goes_on_from_the_old_ones_checkpoints(
    store: Store, person: Store, state: JobState
) -> None:
    spec = replace(SPEC, params={"lr": 0.1}, snapshot="a" * 64)
    store.submit("j", "digits", spec, snapshot=b"tar")
    store.assign("j", SLOT, push_nothing)
    store.claim("j", 1, worker_pid=10)
    for step in (10, 20):
        store.accept_checkpoint("j", 1, a_checkpoint(step))
    store.end_attempt("j", 1, Outcome(reason=Reason.USER_ERROR))
    old = moved(store, "j", state)

    new = person.retry("j", "j2")
    assert (new.name, new.state, new.attempt, new.failures) == ("digits", JobState.QUEUED, 0, 0)
    assert new.spec == replace(spec, retry_of="j")
    assert [(found.step, found.attempt, found.job) for found in new.checkpoints] == [(20, 0, "j"), (10, 0, "j")]
    assert store.job("j") == old, "a terminal state is never left"
    assert person.retry("j", "j2") == new
    assert person.retry("j", "j3", fresh=True).checkpoints == ()


def test_a_checkpoint_of_the_same_name_as_an_inherited_one_is_taken(store: Store) -> None:
    started(store)
    store.accept_checkpoint("j", 1, a_checkpoint(10))
    store.end_attempt("j", 1, Outcome(reason=Reason.USER_ERROR))
    moved(store, "j", JobState.FAILED)
    store.retry("j", "j2")
    store.assign("j2", SLOT, push_nothing)
    store.claim("j2", 1, worker_pid=11)
    job = store.accept_checkpoint("j2", 1, a_checkpoint(10))
    assert [(found.attempt, found.job) for found in job.checkpoints] == [(1, None), (0, "j")]


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.FAILED, JobState.CANCELLED}))
def test_only_what_failed_or_was_cancelled_is_done_again(store: Store, state: JobState) -> None:
    brought_to(store, state)
    with pytest.raises(IllegalTransition):
        store.retry("j", "j2")
    assert store.job_ids() == ["j"]


def test_a_job_waits_for_jobs_that_are_there(person: Store) -> None:
    with pytest.raises(NotFound, match="nobody"):
        person.submit("child", "child", replace(SPEC, after=("nobody",)))
    assert person.job_ids() == []
    person.submit("parent", "parent", SPEC)
    child = person.submit("child", "child", replace(SPEC, after=("parent",)))
    assert child.detail == "waits for parent to succeed"
    person.cancel("parent")
    person.cancel("child")
    with pytest.raises(InvalidJob, match="parent"):
        person.retry("child", "child2")


def test_a_slot_is_cordoned_once_and_uncordoning_closes_its_breaker(store: Store, person: Store) -> None:
    store.register_slot(SLOT)
    assert person.cordon("h-cpu0", cordoned=True).cordoned
    person.cordon("h-cpu0", cordoned=True)
    store.register_slot(SLOT)  # its agent starts anew
    assert [slot.cordoned for slot in store.slots()] == [True]
    resting = Breaker(slot="h-cpu0", state=BreakerState.OPEN, failed=("a",), openings=1, until_ms=5)
    assert store.move_breaker(None, resting, cause="breaker opened")
    assert not store.move_breaker(None, resting, cause="breaker opened"), "a writer that did not look was let in"
    assert store.breakers(["h-cpu0"]) == {"h-cpu0": resting}
    assert not person.cordon("h-cpu0", cordoned=False).cordoned
    assert store.breakers(["h-cpu0"]) == {}
    told = [event.cause for _, event in streams.newest_events(store.client, 10) if event is not None]
    assert told == ["cordoned", "breaker opened", "uncordoned"]
    with pytest.raises(NotFound, match="trackside slots"):
        person.cordon("h-cpu9", cordoned=True)
    assert not store.client.exists(keys.slot("h-cpu9"))


def test_a_cordoned_slot_is_still_cordoned_when_its_host_comes_back(store: Store, person: Store) -> None:
    store.register_slot(SLOT)
    person.cordon("h-cpu0", cordoned=True)
    store.retire_slot("h-cpu0")
    assert store.slots() == []
    store.register_slot(SLOT)
    assert [slot.cordoned for slot in store.slots()] == [True]
    person.cordon("h-cpu0", cordoned=False)
    store.retire_slot("h-cpu0")
    assert not store.client.exists(keys.slot("h-cpu0"))


def test_slot_events_belong_to_no_job(store: Store) -> None:
    store.register_slot(SLOT)
    store.cordon("h-cpu0", cordoned=True)
    event = streams.newest_events(store.client, 1)[0][1]
    assert event is not None
    assert (event.kind, event.job, event.data) == (EventKind.SLOT, None, {"slot": "h-cpu0"})
