"""The supervisor against a real server: killed between any two steps, doubled, and frozen past its lease.

The trainer is played by the test, through the store as a real one would, so that a whole life of jobs fits in a second.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from makers import SLOT
from store_world import events_of, folded
from supervisor_harness import (
    BREAKER_AFTER,
    SCRIPTS,
    SPEC,
    WANTED,
    Supervisors,
    Trainer,
    all_over,
    everything,
    replay_all,
    submit_all,
    working,
)
from trackside.bus import beats, queue, streams
from trackside.bus.client import Client, connect
from trackside.models import (
    Breaker,
    EventKind,
    Job,
    JobState,
    Reason,
    Role,
)
from trackside.store import Store
from trackside.testing import wait_until
from trackside_supervisor import crashpoints, service
from trackside_supervisor.breaker import Limits, observe, probing
from trackside_supervisor.recovery import SELFTEST

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    """As a trainer has it."""
    return Store(connect(bus_urls["trainer"]), by="test")


@pytest.fixture
def supervisors(bus_urls: Mapping[str, str], tmp_path: Path) -> Iterator[Supervisors]:
    with Supervisors(bus_urls["supervisor"], tmp_path) as found:
        yield found


def dead_or_done(process: BaseProcess, store: Store) -> bool:
    return not process.is_alive() or all_over(store)


def assert_right(store: Store) -> None:
    """Every job ended as it should, once; each attempt once; RQ holds nothing; each decision replays."""
    found = {job.id: job for job in store.jobs(store.job_ids())}
    assert {job_id: found[job_id].state for job_id in WANTED} == WANTED
    assert found["parent"].attempt == 5
    assert "broken" in (found["orphan"].detail or "")
    assert found["orphan"].attempt == 0
    for job in found.values():
        told = events_of(store, job.id)
        counts = Counter((event.kind, event.attempt) for event in told)
        for number in range(1, job.attempt + 1):
            for kind in (EventKind.ASSIGNED, EventKind.STARTED, EventKind.ENDED):
                assert counts[kind, number] == 1, f"{job.id}: attempt {number} {kind} {counts[kind, number]} times"
        assert folded(store, job.id) is job.state
    replay_all(everything(store))
    assert_breaker_counts_each_end_once(store)
    assert queue.queued(store.client, SLOT.id) == [f"{job.id}_{n}" for job, n in carried(store)]


def assert_breaker_counts_each_end_once(store: Store) -> None:
    """The breaker's events are those that follow from the ends of all attempts, each counted once."""
    limits = Limits(after=BREAKER_AFTER, rest_s=lambda _: 0.0)
    breaker, follow, told = Breaker(slot=SLOT.id), list[str](), list[str]()
    for event in everything(store):
        if event.kind is EventKind.SLOT:
            told.append(str(event.cause))
        if event.cause == "breaker probing":
            breaker = probing(breaker, str(event.data["job"]))
            follow.append("breaker probing")
        elif event.kind is EventKind.TRANSITION and "reason" in event.data and event.job is not None:
            before, reason = breaker, Reason(event.data["reason"])
            progressed = bool(event.data.get("progressed"))
            breaker = observe(before, event.job, reason, limits, event.at_ms, progressed=progressed)
            follow += [f"breaker {breaker.state}"] if breaker.state is not before.state else []
    assert told == follow


def carried(store: Store) -> list[tuple[Job, int]]:
    """The attempts whose RQ job the played trainer left in the queue, oldest first: each pushed exactly once."""
    events = everything(store)
    lost = {(event.job, event.attempt) for event in events if event.kind is EventKind.ENDED and event.cause == "lost"}
    given = [event for event in events if event.kind is EventKind.ASSIGNED]
    return [
        (store.job(event.job), event.attempt)
        for event in given
        if event.job is not None and event.attempt is not None and (event.job, event.attempt) not in lost
    ]


@pytest.mark.parametrize("point", crashpoints.POINTS)
def test_a_supervisor_killed_between_any_two_steps_is_followed_by_one_that_carries_on(
    store: Store, supervisors: Supervisors, point: str
) -> None:
    submit_all(store)
    with working(Trainer(store.client, SCRIPTS)):
        for nth in (1, 2):
            process = supervisors.start(f"{point}:{nth}")
            wait_until(partial(dead_or_done, process, store), 20, f"{point!r} never came and nothing ended")
            if process.is_alive():  # an act that this life comes by once only
                assert nth == 2, f"no supervisor came by {point!r}"
                process.kill()
            process.join(10)
            assert process.exitcode == -signal.SIGKILL
        supervisors.start()
        wait_until(lambda: all_over(store), 20, f"after a death {point!r} not everything ended")
    assert_right(store)


def test_two_supervisors_at_once_decide_each_end_once(store: Store, supervisors: Supervisors) -> None:
    submit_all(store)
    for _ in range(3):
        supervisors.start()
    with working(Trainer(store.client, SCRIPTS)):
        wait_until(lambda: all_over(store), 20, "not everything ended")
    assert_right(store)


@pytest.mark.parametrize("point", ["before assign", "before conclude", "before requeue", "before discard"])
def test_a_leader_frozen_in_the_middle_of_an_act_past_its_lease_changes_nothing_when_it_wakes(
    store: Store, supervisors: Supervisors, point: str
) -> None:
    submit_all(store)
    with working(Trainer(store.client, SCRIPTS)):
        old = supervisors.start(f"{point}:1:stop")
        assert old.pid is not None
        wait_until(lambda: stopped(old.pid), 20, f"the leader never came to {point!r}")
        supervisors.start()
        wait_until(lambda: all_over(store), 20, "the second supervisor did not carry on")
        before = len(streams.newest_events(store.client, 1000))
        os.kill(old.pid, signal.SIGCONT)
        wait_until(lambda: watches(store.client, old.pid), 20, "the old leader did not come back to watching")
    assert len(streams.newest_events(store.client, 1000)) == before, "a stale act was accepted"
    assert_right(store)


def test_a_stale_leaders_act_is_refused_even_where_the_job_would_still_allow_it(
    store: Store, supervisors: Supervisors
) -> None:
    store.register_slot(SLOT)
    store.submit("j", "j", SPEC)
    with working(Trainer(store.client, {})):
        old = supervisors.start("before assign:1:stop")
        wait_until(lambda: stopped(old.pid), 20, "the leader never came to its act")
        store.cordon(SLOT.id, cordoned=True)  # so its successor has no reason to touch the job
        new = supervisors.start()
        wait_until(lambda: leaders(store) == [old.pid, new.pid], 20, "nobody took the lease")
        assert old.pid is not None
        os.kill(old.pid, signal.SIGCONT)
        wait_until(lambda: watches(store.client, old.pid), 20, "the old leader did not come back to watching")
        assert store.job("j").attempt == 0, "the stale leader gave the job to a slot"
        assert leaders(store) == [old.pid, new.pid]
        store.cordon(SLOT.id, cordoned=False)
        wait_until(lambda: store.job("j").state is JobState.SUCCEEDED, 20, "its successor does nothing")
    assert store.job("j").attempt == 1


def stopped(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def leaders(store: Store) -> list[int]:
    """Who has said to lead, which comes after the beat that tells it."""
    return [event.data["pid"] for event in everything(store) if event.cause == service.LEADS]


def watches(client: Client, pid: int | None) -> bool:
    """Whether that supervisor beats and does not lead."""
    return any(
        beat is not None and beat.role is Role.SUPERVISOR and beat.pid == pid and not beat.leader
        for beat in beats.read(client).values()
    )


@pytest.mark.parametrize(
    "crash_at",
    [None, "after conclude:1", "after conclude:2", "before probe:1", "after probe submitted:1", "after probe:1"],
)
def test_a_slot_on_which_different_jobs_crash_rests_and_comes_back_by_its_self_test(
    store: Store, supervisors: Supervisors, crash_at: str | None
) -> None:
    store.register_slot(SLOT)
    once = replace(SPEC, retries=0)
    for name in ("a", "b", "c"):
        store.submit(name, name, once)
    first = supervisors.start(crash_at)
    scripts = {"a": (Reason.CUDA_ERROR,), "b": (Reason.KILLED,), "c": (Reason.SUCCEEDED,)}
    with working(Trainer(store.client, scripts)):
        if crash_at is not None:
            wait_until(lambda: not first.is_alive(), 20, f"no supervisor came by {crash_at!r}")
            supervisors.start()
        wait_until(
            lambda: store.job("c").state is JobState.SUCCEEDED and all_over(store), 20, "the slot did not return"
        )
    told = everything(store)
    causes = [event.cause for event in told if event.kind is EventKind.SLOT]
    assert causes == ["breaker open", "breaker probing", "breaker closed"]
    given = [event.job for event in told if event.kind is EventKind.ASSIGNED]
    probe = given[2]
    assert probe is not None
    assert given == ["a", "b", probe, "c"], "the slot took work before its self-test"
    assert store.job(probe).spec.program == SELFTEST


def test_a_job_that_takes_its_hosts_along_waits_each_time_and_ends(store: Store, supervisors: Supervisors) -> None:
    store.register_slot(SLOT)
    store.submit("j", "j", replace(SPEC, retries=0))
    supervisors.start()
    with working(Trainer(store.client, {"j": (Reason.GPU_LOST,)})):
        wait_until(lambda: store.job("j").state.terminal, 20, "it goes on for ever")
    job = store.job("j")
    moves = [
        (event.attempt, event.cause)
        for event in events_of(store, "j")
        if event.kind is EventKind.TRANSITION and event.new is not JobState.RUNNING and event.cause != "backoff over"
    ]
    assert (job.state, job.failures, job.barren) == (JobState.FAILED, 0, 0)
    assert moves == [
        (1, "host fault"),
        (2, "host fault"),  # it saved
        (3, "host fault"),
        *((number, "host fault again") for number in range(4, 12)),
        (12, "takes its hosts along"),
    ]
    replay_all(everything(store))


def test_recorded_decisions_of_a_whole_life_replay(store: Store, supervisors: Supervisors) -> None:
    submit_all(store)
    supervisors.start()
    with working(Trainer(store.client, SCRIPTS)):
        wait_until(lambda: all_over(store), 20, "not everything ended")
    ends = [event for event in events_of(store, "parent") if event.kind is EventKind.ENDED]
    made = replay_all(everything(store))
    assert made["slot free"] == sum(job.attempt for job in store.jobs(store.job_ids()))
    assert made["lost"] == sum(event.cause == "lost" for event in ends) > 0
    for cause in ("parents succeeded", "parent did not succeed", "backoff over", "breaker open", "breaker probing"):
        assert made[cause] > 0, f"nothing was decided by {cause!r}, so this shows nothing about it"
