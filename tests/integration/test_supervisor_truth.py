"""What an attempt's own worker said of its end stands, and one record that cannot be read stops nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from makers import SLOT
from supervisor_harness import SPEC, TIMES, Trainer, working
from trackside.bus import keys, streams
from trackside.bus.client import Client, Pipeline, connect
from trackside.config import Settings
from trackside.line import FREE_SLOT
from trackside.models import Attempt, AttemptState, Beat, Job, JobState, Outcome, Reason, Role
from trackside.store import Store
from trackside.testing import wait_until
from trackside_supervisor.clearsight import ClearSight
from trackside_supervisor.keeper import SureLease
from trackside_supervisor.service import Supervisor
from trackside_supervisor.standstill import OLDER, Standstill
from trackside_supervisor.watch import Loss, Sight, lost

OF_A_LATER_VERSION = b'"of a later version"'


@pytest.fixture
def client(bus_urls: Mapping[str, str]) -> Client:
    return connect(bus_urls["trainer"])


@pytest.fixture
def store(client: Client) -> Store:
    """As a trainer has it, with one slot."""
    found = Store(client, by="worker:h-cpu0")
    found.register_slot(SLOT)
    return found


@pytest.fixture
def supervisor(bus_urls: Mapping[str, str], tmp_path: Path) -> Iterator[Supervisor]:
    """One in this process, which leads for as long as a test takes."""
    settings = Settings.from_environ({}, home=tmp_path, log_level="error", host="h", **{**TIMES, "lease_ttl_s": 60.0})
    found = Supervisor(settings, connect(bus_urls["supervisor"]), bus_urls["supervisor"])
    yield found
    found.lease.release()


def until(supervisor: Supervisor, store: Store, job_id: str, state: JobState) -> Job:
    """Let the supervisor work until the job is in that state."""

    def there() -> bool:
        supervisor.tick()
        return store.job(job_id).state is state

    wait_until(there, 20, f"{job_id} did not become {state}: {store.job(job_id)}")
    return store.job(job_id)


def claimed(supervisor: Supervisor, store: Store, trainer: Trainer, job_id: str) -> None:
    """Submit a job, and let the slot's worker take it."""
    store.submit(job_id, job_id, SPEC)

    def given() -> bool:
        trainer.beat()
        supervisor.tick()
        return store.job(job_id).slot == SLOT.id

    wait_until(given, 10, f"{job_id} was given to nobody")
    store.claim(job_id, 1, worker_pid=trainer.pid)


def test_an_end_that_comes_while_its_attempt_is_taken_for_lost_stands(
    client: Client, store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(supervisor, store, Trainer(client, {}), "j")
    end_lost = supervisor._actions.end_lost
    taken: list[str] = []

    def late(job: Job, attempt: Attempt, loss: Loss) -> Job:
        taken.append(loss.rule)
        store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED, detail="done"))
        return end_lost(job, attempt, loss)

    monkeypatch.setattr(supervisor._actions, "end_lost", late)
    job = until(supervisor, store, "j", JobState.SUCCEEDED)
    assert taken == ["silent host"]
    assert (job.attempt, job.reason) == (1, Reason.SUCCEEDED)


@pytest.mark.parametrize("asked", ["pause", "cancel"])
def test_what_is_asked_just_after_an_end_does_not_undo_it(
    client: Client, store: Store, supervisor: Supervisor, asked: str
) -> None:
    claimed(supervisor, store, Trainer(client, {}), "j")
    store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED, detail="done"))
    (store.pause if asked == "pause" else store.cancel)("j")
    assert until(supervisor, store, "j", JobState.SUCCEEDED).attempt == 1


def breaking(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, when: Callable[[Sight], bool]) -> list[Sight]:
    """Let the supervisor's connection break behind its first look of that kind; that look, once it was there."""
    look, broken = supervisor._look, list[Sight]()

    def breaks() -> Sight:
        sight = look()
        if not broken and when(sight):
            broken.append(sight)
            supervisor._client.connection_pool.disconnect()
        return sight

    monkeypatch.setattr(supervisor, "_look", breaks)
    return broken


def test_a_connection_that_breaks_in_a_round_costs_no_other_round(
    client: Client, store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that breaks every few seconds would let no round end."""
    claimed(supervisor, store, Trainer(client, {}), "j")
    store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED, detail="done"))
    broken = breaking(supervisor, monkeypatch, lambda _: True)
    supervisor.tick()
    assert broken
    assert store.job("j").state is JobState.SUCCEEDED


def test_a_server_that_lost_records_while_the_connection_broke_in_a_round_is_decided_about_in_the_next(
    client: Client, store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(supervisor, store, Trainer(client, {}), "j")
    store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED, detail="done"))
    breaking(supervisor, monkeypatch, lambda _: bool(client.delete(keys.EVENTS)))
    supervisor.tick()
    assert store.job("j").state is JobState.RUNNING
    assert until(supervisor, store, "j", JobState.SUCCEEDED).attempt == 1


def test_nobody_is_taken_for_lost_by_what_was_seen_before_the_connection_broke(
    client: Client, store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(supervisor, store, Trainer(client, {}), "j")

    def silent(sight: Sight) -> bool:
        return lost(store.job("j"), store.attempt("j", 1), sight, supervisor._limits) is not None

    broken = breaking(supervisor, monkeypatch, silent)

    def judged() -> bool:
        supervisor.tick()
        return bool(broken)

    wait_until(judged, 20, "the silent worker was not seen")
    assert store.attempt("j", 1).state is AttemptState.RUNNING

    def ended() -> bool:
        supervisor.tick()
        return store.attempt("j", 1).state is AttemptState.ENDED

    wait_until(ended, 20, "nor was it by a look of its own")


@pytest.mark.parametrize("before", ["gone", "of a later version"])
def test_an_end_is_decided_about_though_the_attempt_before_it_cannot_be_read(
    client: Client, store: Store, supervisor: Supervisor, bus_urls: Mapping[str, str], before: str
) -> None:
    trainer = Trainer(client, {})
    claimed(supervisor, store, trainer, "j")
    store.end_attempt("j", 1, Outcome(reason=Reason.KILLED, detail="killed"))

    def given_again() -> bool:
        trainer.beat()
        supervisor.tick()
        return store.job("j").attempt == 2

    wait_until(given_again, 20, "it is not done again")
    store.claim("j", 2, worker_pid=trainer.pid)
    with connect(bus_urls["tester"]) as behind:
        if before == "gone":
            behind.delete(keys.attempt("j", 1))
        else:
            behind.hset(keys.attempt("j", 1), "state", OF_A_LATER_VERSION)
    store.end_attempt("j", 2, Outcome(reason=Reason.SUCCEEDED, detail="done"))
    assert until(supervisor, store, "j", JobState.SUCCEEDED).attempt == 2


@pytest.mark.parametrize("damaged", ["attempt", "parent"])
def test_a_record_that_cannot_be_read_stops_its_own_job_only(
    client: Client, store: Store, supervisor: Supervisor, bus_urls: Mapping[str, str], damaged: str
) -> None:
    trainer = Trainer(client, {})
    claimed(supervisor, store, trainer, "a")
    store.submit("child", "child", replace(SPEC, after=("a",)))
    key = keys.attempt("a", 1) if damaged == "attempt" else keys.job("a")
    was = client.hget(key, "state")
    behind = connect(bus_urls["tester"])
    behind.hset(key, "state", OF_A_LATER_VERSION)
    store.submit("b", "b", replace(SPEC, slot=None))
    store.register_slot(replace(SLOT, id="h-cpu1"))
    for _ in range(20):
        supervisor.tick()
    assert store.job("child").state is JobState.QUEUED, "nobody knows yet whether its parent succeeded"
    behind.hset(key, "state", was)
    with working(trainer):
        for job_id in ("a", "b", "child"):
            until(supervisor, store, job_id, JobState.SUCCEEDED)


def test_a_round_takes_no_more_round_trips_for_many_attempts_than_for_one(
    client: Client, store: Store, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow line it would in the end be too long for any silence to be judged."""
    supervisor._sight = ClearSight(3600.0, 0.0)  # on a slow machine the silence of the played workers would be due
    claimed(supervisor, store, Trainer(client, {}), "j")
    asked: list[tuple[object, ...]] = []
    ask, execute = Client.execute_command, Pipeline.execute

    def asks(self: Client, *args: object, **options: object) -> object:
        asked.append(args)
        return ask(self, *args, **options)

    def executes(self: Pipeline, raise_on_error: bool = True) -> list[object]:
        asked.append(tuple(self.command_stack))
        return execute(self, raise_on_error)

    def trips() -> int:
        """Of one round that reads all, in which nothing is due."""
        supervisor.tick()
        supervisor._resync_due_s = supervisor._tend_due_s = 0.0
        asked.clear()
        with monkeypatch.context() as patched:
            patched.setattr(supervisor, "_beat", lambda *_: None)
            patched.setattr(Client, "execute_command", asks)
            patched.setattr(Pipeline, "execute", executes)
            supervisor.tick()
        return len(asked)

    one = trips()
    for number in range(9):
        slot = replace(SLOT, id=f"h-cpu{number + 1}")
        store.submit(f"j{number}", "j", SPEC)
        store.assign(f"j{number}", slot, lambda *_: None)
        store.claim(f"j{number}", 1, worker_pid=10)
    supervisor.tick()
    assert trips() == one, asked


def test_a_job_that_its_worker_never_claimed_is_not_said_to_be_given_to_it(
    client: Client, store: Store, supervisor: Supervisor
) -> None:
    store.submit("j", "j", SPEC)
    trainer = Trainer(client, {})

    def given() -> bool:
        trainer.beat()
        supervisor.tick()
        return store.job("j").slot == SLOT.id

    wait_until(given, 10, "j was given to nobody")

    def taken_back() -> bool:  # its worker's host has fallen silent, and there is no other slot
        supervisor.tick()
        return store.job("j").slot is None

    wait_until(taken_back, 20, "nobody noticed that it was not claimed")
    job = store.job("j")
    assert (job.state, job.attempt, job.reason, job.detail) == (JobState.QUEUED, 1, Reason.LOST, FREE_SLOT)


def test_a_standstill_that_could_not_be_told_is_told_with_the_next_look(
    bus_urls: Mapping[str, str], store: Store, tmp_path: Path
) -> None:
    store.submit("j", "j", SPEC)
    beat = Beat(
        role=Role.WORKER, name=SLOT.id, host="h", pid=1, started_at_ms=0, at_ms=0, slot=SLOT.id, job="j", attempt=3
    )
    member = f"{Role.WORKER}:{SLOT.id}"
    sight, jobs = Sight(now_ms=0, deadlines={member: 1}, beats={member: beat}, clear=True), {"j": store.job("j")}
    compared = iter((False, True, True))
    with connect(bus_urls["supervisor"]) as client:
        lease = SureLease(client, "h-1", 60.0, lambda: next(compared))
        assert lease.hold()
        standstill = Standstill(Store(client, by="supervisor:h-1", lease=lease), tmp_path)
        told = []
        for _ in range(3):
            assert standstill.stands(jobs, sight) == {"j"}
            told.append([event.cause for _, event in streams.history(client, "j")].count(OLDER))
        lease.release()
    assert told == [0, 1, 1]
