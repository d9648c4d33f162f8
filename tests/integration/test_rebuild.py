"""The rebuild against a real server: whoever dies in the middle of it is followed by one that carries on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from makers import SLOT
from server_harness import killed
from store_world import events_of
from supervisor_harness import (
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
from trackside.errors import Conflict
from trackside.models import Attempt, AttemptState, Beat, Event, EventKind, Job, JobState, Outcome, Reason, Role
from trackside.retry import until_reachable
from trackside.server import EmbeddedServer
from trackside.store import Store
from trackside.testing import wait_until
from trackside_supervisor import crashpoints
from trackside_supervisor.keeper import SureLease
from trackside_supervisor.rebuild import BEGUN, REBUILT
from trackside_supervisor.standstill import OLDER

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def client(own_server: EmbeddedServer) -> Client:
    return connect(own_server.url("trainer"))


@pytest.fixture
def store(client: Client) -> Store:
    """As a trainer has it."""
    return Store(client, by="test")


@pytest.fixture
def supervisors(own_server: EmbeddedServer, tmp_path: Path) -> Iterator[Supervisors]:
    with Supervisors(own_server.url("supervisor"), tmp_path, by_command=True) as found:
        yield found


def state_of(store: Store, job_id: str) -> tuple[Job, list[Attempt], list[Event]]:
    """All records of a job but the notes of rebuilds."""
    job = store.job(job_id)
    told = [event for event in events_of(store, job_id) if event.cause != REBUILT]
    return job, store.attempts(job), told


def notes(store: Store, job_id: str) -> int:
    return causes(store, job_id).count(REBUILT)


def emptied(server: EmbeddedServer) -> None:
    """The server is killed, and comes back with nothing at the same address."""
    killed(server)
    shutil.rmtree(server.home / "redis" / "appendonlydir")
    server.start().wait_ready()


@pytest.mark.parametrize("crash_at", [None, *(f"{point}:1" for point in crashpoints.REBUILD_POINTS), "rebuilding:3"])
def test_a_supervisor_killed_in_the_middle_of_a_rebuild_is_followed_by_one_that_carries_on(
    own_server: EmbeddedServer, client: Client, store: Store, supervisors: Supervisors, crash_at: str | None
) -> None:
    submit_all(store)
    first = supervisors.start(crash_at)
    with working(Trainer(client, SCRIPTS)):
        wait_until(lambda: all_over(store), 20, "not everything ended")
    store.cordon(SLOT.id, cordoned=True)
    store.submit("waits", "waits", SPEC)
    jobs = sorted(store.job_ids())
    wait_until(lambda: ledger_has(supervisors.home, '"waits"', '"cordoned":true'), 10, "the ledger did not take it in")
    before = {job_id: state_of(store, job_id) for job_id in jobs}

    emptied(own_server)
    if crash_at is not None:
        wait_until(lambda: not first.is_alive(), 20, f"the supervisor did not come by {crash_at!r}")
        assert first.exitcode == -signal.SIGKILL
        supervisors.start()
    wait_until(lambda: until_reachable(lambda: all_back(store, jobs), limit_s=20), 20, "not every job came back")

    assert {job_id: state_of(store, job_id) for job_id in jobs} == before
    made = replay_all(everything(store))
    assert made[BEGUN] >= 1, "nothing says why the records were rebuilt"
    assert made[REBUILT] == len(jobs)
    assert [notes(store, job_id) for job_id in jobs] == [1] * len(jobs)
    assert {job_id: store.job(job_id).state for job_id in WANTED} == WANTED
    assert store.live_job_ids() == ["waits"]
    wait_until(lambda: cordoned(store), 20, "what people had set on the slot is lost")  # slots come after the jobs
    store.cordon(SLOT.id, cordoned=False)
    with working(Trainer(client, {})):
        wait_until(lambda: store.job("waits").state is JobState.SUCCEEDED, 20, "nothing goes on after the rebuild")
    newest = streams.newest_event_id(client)
    wait_until(lambda: ledger_has(supervisors.home, f'"at","id":"{newest}"'), 10, "the ledger stays behind")
    given = [event for event in state_of(store, "waits")[2] if event.kind is EventKind.ASSIGNED]
    assert [event.attempt for event in given] == [1]


def cordoned(store: Store) -> bool:
    return any(slot.id == SLOT.id and slot.cordoned for slot in store.slots())


def cut(server: EmbeddedServer, size: Callable[[bytes], int]) -> None:
    """The server is killed, and its append-only file loses its tail, as by a power cut."""
    killed(server)
    (path,) = (server.home / "redis" / "appendonlydir").glob("*.incr.aof")
    os.truncate(path, size(path.read_bytes()))
    server.start().wait_ready()


CUTS: dict[str, Callable[[bytes], int]] = {
    "100 bytes": lambda data: len(data) - 100,
    "in the middle of a change": lambda data: data.index(b"ts:job:last") + 5,
}


@pytest.mark.parametrize("where", CUTS)
def test_what_a_cut_append_only_file_lost_is_told_and_comes_back(
    own_server: EmbeddedServer, client: Client, store: Store, supervisors: Supervisors, where: str
) -> None:
    submit_all(store)
    supervisors.start()
    with working(Trainer(client, SCRIPTS)):
        wait_until(lambda: all_over(store), 20, "not everything ended")
    store.submit("last", "last", SPEC)
    wait_until(lambda: ledger_has(supervisors.home, '"last"'), 10, "the ledger did not take it in")
    jobs = sorted(store.job_ids())
    before = {job_id: state_of(store, job_id) for job_id in jobs}

    cut(own_server, CUTS[where])

    store.register_slot(SLOT)
    wait_until(lambda: until_reachable(lambda: bool(store.jobs(["last"])), limit_s=20), 20, "what was lost stays lost")
    with working(Trainer(client, {})):
        wait_until(lambda: store.job("last").state is JobState.SUCCEEDED, 20, "nothing goes on")
    assert {job_id: state_of(store, job_id) for job_id in jobs if job_id != "last"} == {
        job_id: state for job_id, state in before.items() if job_id != "last"
    }
    told = [event.data["text"] for event in events_of(store, "last") if event.cause == REBUILT]
    if where != "100 bytes":  # those may be nothing but signs of life
        assert ["without this job" in text for text in told] == [True]
        assert replay_all(everything(store))[BEGUN] >= 1


@pytest.mark.parametrize("returns", ["later", "before the rebuild"])
def test_a_cordon_outlasts_the_loss_of_a_slot_that_has_left(
    own_server: EmbeddedServer, store: Store, supervisors: Supervisors, returns: str
) -> None:
    gone = replace(SLOT, id="h-gpu0", kind="gpu")
    for slot in (SLOT, gone):
        store.register_slot(slot)
    store.cordon(gone.id, cordoned=True, why="Xid 79")
    first = supervisors.start()
    wait_until(lambda: ledger_has(supervisors.home, '"cordoned":true'), 20, "the ledger did not take it in")
    store.retire_slot(gone.id)  # the agent stops in order, as for a repair
    wait_until(lambda: away(supervisors.home) == [gone.id], 10, "the ledger has forgotten it")

    if returns == "later":
        emptied(own_server)
        wait_until(lambda: until_reachable(store.slots, limit_s=20), 20, "nothing was rebuilt")
        assert [slot.id for slot in store.slots()] == [SLOT.id], "a slot that has left is on the books"
        store.register_slot(gone)
    else:
        first.kill()
        first.join(10)
        emptied(own_server)
        until_reachable(lambda: store.register_slot(gone), limit_s=20)
        store.tell_gpu(gone.id, blocked=None, throttled=None, events=[("gpu free", {})])
        supervisors.start()
    wait_until(lambda: store.slot(gone.id).cordoned, 20, "a slot that was taken out of service takes work")
    assert store.slot(gone.id).cordon_reason == "Xid 79"

    store.cordon(gone.id, cordoned=False)
    store.retire_slot(gone.id)
    wait_until(lambda: away(supervisors.home) == [], 10, "the ledger remembers a cordon that was lifted")


def away(home: Path) -> list[str]:
    """The slots of which the ledger knows that they left cordoned."""
    written = [path.read_bytes() for path in (home / "ledger").glob("*.jsonl")]
    whole = [data[: data.rfind(b"\n") + 1] for data in written]  # the last line may be on its way
    lines = [orjson.loads(line) for data in whole for line in data.splitlines()]
    return [slot["id"] for slot in next((line["r"] for line in reversed(lines) if line["k"] == "away"), [])]


def test_an_attempt_that_was_only_given_out_is_given_again_under_a_new_number(
    own_server: EmbeddedServer, client: Client, store: Store, supervisors: Supervisors
) -> None:
    store.register_slot(SLOT)
    trainer = Trainer(client, {})
    trainer.beat()
    store.submit("j", "j", SPEC)
    supervisors.start()
    wait_until(lambda: beating(trainer) and store.job("j").attempt == 1, 20, "it was not given out")
    wait_until(lambda: ledger_has(supervisors.home, '"assigned"'), 10, "the ledger did not take it in")

    emptied(own_server)  # and with it what stood in the slot's queue

    wait_until(lambda: until_reachable(lambda: bool(store.jobs(["j"])), limit_s=20), 20, "the job did not come back")
    wait_until(lambda: beating(trainer) and store.job("j").attempt == 2, 20, "it waits for ever")
    first, second = store.attempts(store.job("j"))
    assert first.outcome is not None
    assert first.outcome.reason is Reason.LOST
    assert second.state is AttemptState.ASSIGNED
    assert queue.queued(client, SLOT.id) == ["j_2"]


def test_without_a_ledger_a_job_that_a_worker_has_more_of_is_left_alone_and_said(
    client: Client, supervisors: Supervisors
) -> None:
    store = Store(client, by="worker:h-cpu0")
    store.register_slot(SLOT)
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, lambda pipe, job: None)
    store.claim("j", 1, worker_pid=10)
    store.end_attempt("j", 1, Outcome(reason=Reason.KILLED))  # so far goes the copy that the server came back with
    beat = Beat(
        role=Role.WORKER, name=SLOT.id, host="h", pid=10, started_at_ms=0, at_ms=0, slot=SLOT.id, job="j", attempt=2
    )  # fmt: skip
    beats.publish(client, beat, 120.0)
    supervisors.start()
    wait_until(lambda: OLDER in causes(store, "j"), 20, "the supervisor says nothing")
    store.submit("k", "k", SPEC)
    wait_until(lambda: store.job("k").attempt == 1, 20, "other jobs are not given out any more")

    assert (store.job("j").state, store.job("j").attempt) == (JobState.RUNNING, 1), "it was decided about"
    assert causes(store, "j").count(OLDER) == 1
    assert replay_all(everything(store))[OLDER] == 1


def causes(store: Store, job_id: str) -> list[str | None]:
    return [event.cause for event in events_of(store, job_id)]


def test_nothing_is_written_to_a_server_that_was_not_compared_yet(own_server: EmbeddedServer) -> None:
    client = connect(own_server.url("supervisor"))
    sure = [True]
    lease = SureLease(client, "me", 5.0, lambda: sure[0])
    store = Store(client, by="supervisor:me", lease=lease)
    assert lease.hold()
    store.submit("j", "j", SPEC)
    sure[0] = False
    with pytest.raises(Conflict, match="compared"):
        store.assign("j", SLOT, lambda pipe, job: None)
    assert store.job("j").attempt == 0


def test_a_connection_that_was_made_anew_without_a_word_is_counted(own_server: EmbeddedServer) -> None:
    client = connect(own_server.url("supervisor"))
    client.ping()
    made = client.connections.settle()
    assert client.connections.settle() == made
    emptied(own_server)
    assert client.ping(), "redis-py is expected to connect again by itself"
    assert client.connections.made == made + 1


def beating(trainer: Trainer) -> bool:
    trainer.beat()
    return True


def all_back(store: Store, jobs: list[str]) -> bool:
    return all(notes(store, job_id) for job_id in jobs)


def ledger_has(home: Path, *words: str) -> bool:
    text = "".join(path.read_text() for path in (home / "ledger").glob("*.jsonl"))
    return all(word in text for word in words)
