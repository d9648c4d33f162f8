"""What is given to a slot is taken by it whatever becomes of the answers: an id is never left between RQ's lists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from chaos.proxy import Proxy
from makers import SLOT, SPEC
from trackside.bus import queue
from trackside.bus.client import connect, with_password
from trackside.config import Settings
from trackside.errors import BusUnavailable
from trackside.models import JobState
from trackside.secretfiles import read_password
from trackside.server import EmbeddedServer
from trackside.store import Store
from trackside_trainer.intake import Intake
from trackside_trainer.slotfiles import taken_path
from trackside_trainer.worker import SlotWorker


@pytest.fixture
def intake(line: Proxy, redis_server: EmbeddedServer, bus_urls: Mapping[str, str], tmp_path: Path) -> Iterator[Intake]:
    """A slot's, with no gates; it reaches the records by `line`, and RQ's own by another."""
    password = read_password(redis_server.home / "secrets" / "trainer")
    client = connect(with_password(f"redis://trainer@127.0.0.1:{line.port}/0", password))
    rq = SlotWorker(SLOT.id, queue.rq_client(bus_urls["trainer"]))
    yield Intake(Settings(home=tmp_path), SLOT, Store(client, by=f"worker:{SLOT.id}"), rq, ())
    client.close()


@pytest.fixture
def boss(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["supervisor"]), by="supervisor:test")


def given(boss: Store, bus_urls: Mapping[str, str], job_id: str) -> None:
    rq = queue.rq_client(bus_urls["supervisor"])
    boss.submit(job_id, job_id, SPEC)
    boss.assign(job_id, SLOT, lambda pipe, job: queue.push(pipe, rq, job.id, job.attempt, SLOT.id))


@pytest.mark.parametrize("answers", [0, 1, 2, 3, 4])
def test_an_attempt_whose_taking_was_cut_off_is_taken_at_the_next_turn(
    line: Proxy, intake: Intake, boss: Store, bus_urls: Mapping[str, str], tmp_path: Path, answers: int
) -> None:
    assert intake.take(0.01) is None
    given(boss, bus_urls, "j")
    line.drop_replies(answers)
    taken = None
    for _ in range(2 * answers + 1):
        try:
            taken = intake.take(1.0)
            break
        except BusUnavailable:
            continue
    assert taken is not None, "its id was left between the lists"
    job, rq_job = taken
    assert (job.id, job.attempt, job.state, rq_job.id) == ("j", 1, JobState.RUNNING, "j_1")
    assert boss.attempt("j", 1).worker_pid == os.getpid()
    assert taken_path(tmp_path, "j", 1, os.getpid()).exists()


def test_an_id_that_is_no_attempt_of_this_slot_is_refused_and_the_next_one_is_taken(
    intake: Intake, boss: Store, bus_urls: Mapping[str, str]
) -> None:
    rq = SlotWorker(SLOT.id, queue.rq_client(bus_urls["trainer"]))
    boss.client.rpush(rq.own_queue.key, "nobody_1", b"\xff")
    given(boss, bus_urls, "j")
    assert intake.take(0.01) is None
    assert intake.take(0.01) is None
    taken = intake.take(0.01)
    assert taken is not None
    assert taken[0].id == "j"
    assert boss.client.lrange(rq.own_queue.intermediate_queue_key, 0, -1) == [b"j_1"]


def test_an_attempt_that_the_disk_does_not_note_waits_and_is_taken_once_it_does(
    intake: Intake, boss: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    given(boss, bus_urls, "j")
    in_the_way = taken_path(tmp_path, "j", 1, os.getpid())
    in_the_way.mkdir(parents=True)  # no file replaces a folder
    with pytest.raises(OSError, match="directory"):
        intake.take(0.01)
    assert boss.job("j").state is JobState.QUEUED, "it was claimed with nobody knowing who has it"
    in_the_way.rmdir()
    taken = intake.take(0.01)
    assert taken is not None
    assert taken[0].id == "j"
