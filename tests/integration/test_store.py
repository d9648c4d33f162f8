"""The store against a real server: one writer wins, nothing is doubled, and the history folds to the present state."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
import redis

from makers import SLOT, SPEC, a_checkpoint
from store_world import events_of, folded, moved, push_nothing, started
from trackside.bus import beats, keys, streams
from trackside.bus.client import Client, connect
from trackside.bus.leases import Lease
from trackside.bus.streams import Shipped
from trackside.errors import BusDenied, BusUnavailable, Conflict, Fenced, IllegalTransition, NotFound
from trackside.models import (
    AttemptState,
    Batch,
    Beat,
    EventKind,
    Job,
    JobState,
    Outcome,
    Reason,
    Role,
)
from trackside.processes import look
from trackside.server import EmbeddedServer
from trackside.store import Change, Store
from trackside.testing import wait_until


def a_store(urls: Mapping[str, str], user: str = "supervisor", **more: Lease) -> Store:
    return Store(connect(urls[user]), by=f"{user}:test", **more)


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return a_store(bus_urls)


def ended(store: Store, job: Job, reason: Reason = Reason.KILLED) -> Job:
    return store.end_attempt(job.id, job.attempt, Outcome(reason=reason))


def test_submitting_twice_makes_one_job(bus_urls: Mapping[str, str]) -> None:
    submitter = a_store(bus_urls, "submitter")
    first = submitter.submit("j", "first", SPEC, snapshot=b"tar")
    assert submitter.submit("j", "second", SPEC) == first
    assert submitter.job_ids() == submitter.live_job_ids() == ["j"]
    assert len(events_of(submitter, "j")) == 1


def test_a_snapshot_comes_back_as_it_was_whatever_its_size(bus_urls: Mapping[str, str]) -> None:
    submitter = a_store(bus_urls, "submitter")
    for parts in (0.5, 1, 2, 2.5):
        archive = os.urandom(int(parts * 256 * 1024))
        name = hashlib.sha256(archive).hexdigest()
        submitter.submit(f"j{parts}", "large", replace(SPEC, snapshot=name), snapshot=archive)
        assert submitter.snapshot(name) == archive
    with pytest.raises(NotFound, match="submit the job again"):
        submitter.snapshot("a" * 64)


def test_a_snapshot_is_read_with_the_rules_of_an_earlier_version_too(own_server: EmbeddedServer) -> None:
    archive = os.urandom(300 * 1024)
    name = hashlib.sha256(archive).hexdigest()
    a_store({"submitter": own_server.url("submitter")}, "submitter").submit(
        "j", "j", replace(SPEC, snapshot=name), snapshot=archive
    )
    with connect(own_server.url("tester")) as tester:
        tester.execute_command("ACL", "SETUSER", "trainer", "-getrange")
    trainer = a_store({"trainer": own_server.url("trainer")}, "trainer")
    with pytest.raises(BusDenied):
        trainer.client.getrange(keys.snapshot(name), 0, 1)
    assert trainer.snapshot(name) == archive
    with pytest.raises(NotFound, match="submit the job again"):
        trainer.snapshot("a" * 64)


def test_a_life_with_one_kill_is_told_and_folds_to_its_state(store: Store) -> None:
    job = started(store)
    assert (job.state, job.slot, job.attempt) == (JobState.RUNNING, "h-cpu0", 1)
    store.accept_checkpoint("j", 1, a_checkpoint(10))
    assert ended(store, job).slot is None
    moved(store, "j", JobState.QUEUED)
    job = store.assign("j", SLOT, push_nothing)
    job = store.claim("j", 2, worker_pid=11)
    ended(store, job, Reason.SUCCEEDED)
    job = moved(store, "j", JobState.SUCCEEDED)
    assert job.ended_at_ms is not None
    assert store.live_job_ids() == []
    assert folded(store, "j") is JobState.SUCCEEDED is store.job("j").state
    reasons = [attempt.outcome.reason for attempt in store.attempts(job) if attempt.outcome]
    assert reasons == [Reason.KILLED, Reason.SUCCEEDED]


def test_every_event_wakes_the_status_channel_with_the_same_bytes(store: Store) -> None:
    with store.client.pubsub(ignore_subscribe_messages=True) as listener:  # type: ignore[no-untyped-call]  # redis-py's
        listener.subscribe(keys.STATUS_CHANNEL)
        listener.get_message(timeout=10)
        started(store)
        entries = cast(list[tuple[bytes, dict[bytes, bytes]]], store.client.xrange(keys.EVENTS))
        written = [fields[b"d"] for _, fields in entries]
        heard: list[bytes] = []
        while (message := listener.get_message(timeout=10 if len(heard) < len(written) else 0.5)) is not None:
            heard.append(message["data"])
    assert heard == written
    assert len(written) == 4  # submitted, assigned, started, running


def test_of_many_who_claim_one_wins(bus_urls: Mapping[str, str]) -> None:
    store = a_store(bus_urls)
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, push_nothing)

    def claim(pid: int) -> bool:
        try:
            a_store(bus_urls, "trainer").claim("j", 1, worker_pid=pid)
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(100, 116)))
    assert won.count(True) == 1
    assert store.attempt("j", 1).worker_pid == 100 + won.index(True)


def test_of_many_who_assign_one_attempt_comes_out(bus_urls: Mapping[str, str]) -> None:
    store = a_store(bus_urls)
    store.submit("j", "j", SPEC)
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: a_store(bus_urls).assign("j", SLOT, push_nothing), range(16)))
    assert {job.attempt for job in jobs} == {1}
    assert sum(event.kind is EventKind.ASSIGNED for event in events_of(store, "j")) == 1


def test_an_attempt_that_has_been_replaced_is_refused_everything(store: Store) -> None:
    job = started(store)
    ended(store, job)
    moved(store, "j", JobState.QUEUED)
    store.assign("j", SLOT, push_nothing)
    before = store.job("j")
    with pytest.raises(Fenced):
        store.claim("j", 1, worker_pid=10)
    with pytest.raises(Fenced):
        store.accept_checkpoint("j", 1, a_checkpoint(99))
    with pytest.raises(Fenced):
        store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED))
    with pytest.raises(Fenced):
        store.note_attempt("j", 1, EventKind.NOTE, "hello")
    assert store.job("j") == before
    assert streams.ship_batch(store.client, "j", 1, 10_000, Batch(steps=(1,), at_ms=(1,))) is Shipped.FENCED
    assert streams.ship_output(store.client, "j", 1, 10_000, b"x") is Shipped.FENCED
    assert [number for _, number, _ in streams.batches(store.client, "j")] == []


def test_an_attempt_that_has_ended_takes_no_late_checkpoint_and_ends_once(store: Store) -> None:
    job = started(store)
    ended(store, job, Reason.LOST)
    with pytest.raises(Fenced):
        store.accept_checkpoint("j", 1, a_checkpoint(50))
    ended(store, job, Reason.SUCCEEDED)
    outcome = store.attempt("j", 1).outcome
    assert outcome is not None
    assert outcome.reason is Reason.LOST


def test_an_entry_sent_again_is_taken_once(store: Store) -> None:
    started(store)
    batch = Batch(steps=(1, 2), at_ms=(5, 6), series={"loss": (0.5, "NaN")})
    assert streams.ship_batch(store.client, "j", 1, 120, batch) is Shipped.ACCEPTED
    assert streams.ship_batch(store.client, "j", 1, 120, batch) is Shipped.ALREADY_THERE
    assert streams.last_sequence(store.client, keys.metrics("j"), 1) == 120
    assert [found for _, _, found in streams.batches(store.client, "j")] == [batch]
    newest = streams.last_batch(store.client, "j")
    assert newest is not None
    assert newest[2] == batch


def test_a_newer_checkpoint_restores_the_retry_budget_and_an_older_one_does_not(store: Store) -> None:
    started(store)
    store.change("j", lambda job, now: Change(job=replace(job, failures=3, barren=2, host_faults=4)))
    newer = store.accept_checkpoint("j", 1, a_checkpoint(20))
    assert (newer.failures, newer.barren, newer.host_faults) == (0, 0, 0)
    store.change("j", lambda job, now: Change(job=replace(job, failures=3, barren=2, host_faults=4)))
    older = store.accept_checkpoint("j", 1, a_checkpoint(10))
    assert (older.failures, older.barren, older.host_faults) == (3, 2, 4)
    assert [checkpoint.step for checkpoint in older.checkpoints] == [20, 10]


@pytest.mark.parametrize("runs", [True, False])
def test_cancel_is_at_once_where_nothing_runs_and_asked_for_where_something_does(store: Store, runs: bool) -> None:
    if runs:
        started(store)
    else:
        store.submit("j", "j", SPEC)
    wanted = JobState.CANCELLING if runs else JobState.CANCELLED
    assert store.cancel("j").state is wanted
    assert store.cancel("j").state is wanted  # a second time changes nothing
    assert sum(event.new is wanted for event in events_of(store, "j")) == 1


def test_a_finished_job_refuses_to_be_cancelled_or_paused(store: Store) -> None:
    ended(store, started(store), Reason.SUCCEEDED)
    moved(store, "j", JobState.SUCCEEDED)
    with pytest.raises(IllegalTransition, match="succeeded"):
        store.cancel("j")
    with pytest.raises(IllegalTransition):
        store.pause("j")
    with pytest.raises(NotFound, match="trackside ls"):
        store.cancel("nobody")


def test_a_paused_job_goes_on_under_its_id(store: Store) -> None:
    store.submit("j", "j", SPEC)
    assert store.pause("j").state is JobState.PAUSED
    assert store.assign("j", SLOT, push_nothing).attempt == 0  # paused: not given to a slot
    assert store.resume("j").state is JobState.QUEUED
    assert store.assign("j", SLOT, push_nothing).attempt == 1


def test_who_resumes_a_job_gives_it_its_hosts_anew(store: Store) -> None:
    store.submit("j", "j", SPEC)
    store.pause("j")
    store.change("j", lambda job, now: Change(job=replace(job, host_faults=7)))
    assert store.resume("j").host_faults == 0


def test_a_supervisor_that_lost_its_lease_is_refused(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    stale, fresh = Lease(client, "stale", 5.0), Lease(client, "fresh", 5.0)
    assert stale.hold()
    assert not fresh.hold()
    old = Store(client, by="stale", lease=stale)
    old.submit("j", "j", SPEC)
    client.delete(keys.LEADER)  # as if its time had run out while it was paused
    assert fresh.hold()
    with pytest.raises(Conflict, match="another supervisor"):
        old.assign("j", SLOT, push_nothing)
    assert store_is_untouched(client)
    assert Store(client, by="fresh", lease=fresh).assign("j", SLOT, push_nothing).attempt == 1
    assert fresh.hold()
    assert not stale.hold()
    fresh.release()
    assert stale.hold()


def test_who_held_the_lease_and_finds_it_with_another_leaves_it_there(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    stale, fresh = Lease(client, "stale", 5.0), Lease(client, "fresh", 5.0)
    assert stale.hold()
    client.delete(keys.LEADER)  # as if its time had run out while it was paused
    assert fresh.hold()
    assert not stale.hold(), "it took the lease of another for its own"
    assert fresh.hold()
    assert not stale.held


def test_a_renewal_lengthens_the_lease(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    lease = Lease(client, "one", 60.0)
    assert lease.hold()
    client.pexpire(keys.LEADER, 1000)
    assert lease.hold()
    assert int(client.pttl(keys.LEADER)) > 50_000


def store_is_untouched(client: Client) -> bool:
    return Store(client, by="look").job("j").attempt == 0


def test_beats_expire_but_their_deadline_stays_until_retired(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["trainer"])
    beat = Beat(role=Role.WORKER, name="h-cpu0", host="h", pid=1, started_at_ms=1, at_ms=0)
    beats.publish(client, beat, 60.0)
    now_ms, deadlines = beats.deadlines(client)
    # Two clocks in whole ms: when it is now may be one ms ahead.
    assert 40_000 < deadlines["worker:h-cpu0"] - now_ms <= 60_001
    client.delete(keys.beat("worker", "h-cpu0"))
    assert beats.read(client) == {"worker:h-cpu0": None}
    beats.forget(client, silent_s=0.0)
    assert beats.read(client) == {"worker:h-cpu0": None}, "it is not late yet"
    beats.retire(client, Role.WORKER, "h-cpu0")
    assert beats.read(client) == {}
    beats.publish(client, beat, 0.001)

    def forgotten() -> bool:
        beats.forget(client, silent_s=0.0)
        return beats.read(client) == {}

    wait_until(forgotten, 10.0, "the late process is still on the books")


@pytest.mark.parametrize("wrong_ms", [-3_600_000, 0, 3_600_000])
def test_a_beat_tells_its_processs_start_in_the_servers_time(bus_urls: Mapping[str, str], wrong_ms: int) -> None:
    """A worker that was replaced is judged by it, and a host's own clock may be an hour off."""
    client = connect(bus_urls["trainer"])
    told_ms = time.time_ns() // 1_000_000 + wrong_ms
    beats.publish(
        client, Beat(role=Role.WORKER, name="s", host="h", pid=os.getpid(), started_at_ms=told_ms, at_ms=0), 60.0
    )
    beat = beats.read(client)["worker:s"]
    now_ms, _ = beats.deadlines(client)
    started = look(os.getpid())
    assert beat is not None
    assert started is not None
    since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    age_ms = 1000 * (since_boot_s - started.started / os.sysconf("SC_CLK_TCK"))
    assert abs(now_ms - beat.started_at_ms - age_ms) < 60_000


def test_a_slot_registered_again_keeps_what_people_set(store: Store) -> None:
    store.register_slot(SLOT)
    store.client.hset(keys.slot("h-cpu0"), "cordoned", "true")
    store.register_slot(SLOT)
    assert [slot.cordoned for slot in store.slots()] == [True]
    store.retire_slot("h-cpu0")
    assert store.slots() == []


def test_no_server_and_no_permission_are_told_apart(bus_urls: Mapping[str, str]) -> None:
    with pytest.raises(BusUnavailable, match="trackside up"):
        Store(connect("redis://127.0.0.1:1/0"), by="x").job("j")
    with pytest.raises(BusDenied):
        a_store(bus_urls, "dashboard").submit("j", "j", SPEC)
    with redis.Redis.from_url(bus_urls["tester"]) as tester:
        assert tester.dbsize() == 0


def test_a_damaged_record_hides_no_other(store: Store) -> None:
    store.submit("good", "good", SPEC)
    store.submit("bad", "bad", SPEC)
    store.client.hset(keys.job("bad"), "state", "dancing")
    assert [job.id for job in store.jobs(["bad", "good", "gone"])] == ["good"]


def test_an_attempt_cancelled_before_its_claim_still_starts_and_sees_it(store: Store) -> None:
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, push_nothing)
    assert store.cancel("j").state is JobState.CANCELLING
    assert store.claim("j", 1, worker_pid=10).state is JobState.CANCELLING
    assert store.attempt("j", 1).state is AttemptState.RUNNING


def test_a_lease_whose_holder_is_dead_on_this_machine_is_taken_at_once(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    take = "import sys; from trackside.bus.client import connect; from trackside.bus.leases import Lease; "
    code = take + "print(Lease(connect(sys.argv[1]), 'first', 60.0).hold(), flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, bus_urls["supervisor"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert not Lease(client, "second", 60.0).hold(), "the holder lives"
        holder.kill()
        holder.wait()
    assert Lease(client, "second", 60.0).hold()
