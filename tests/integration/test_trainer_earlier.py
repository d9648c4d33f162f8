"""The curves of earlier attempts on a server that lost them: written again, and never in the way of what runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from trackside.bus import keys
from trackside.bus.client import connect
from trackside.errors import BusError
from trackside.models import CheckpointRef, EventKind, Job, JobSpec, JobState, Outcome, Program, Reason, Slot
from trackside.sdk.journal import JournalWriter
from trackside.store import Store
from trackside_trainer.earlier import EarlierCurves
from trackside_trainer.folders import Folders

SPEC = JobSpec(program=Program(kind="script", target="train.py"))
SLOT = Slot(id="h-cpu0", host="h", kind="cpu", storage="disk")


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["trainer"]), by="worker:h-cpu0")


def in_its_third_attempt(store: Store, bus_urls: Mapping[str, str], data: Path) -> Job:
    """A job whose metrics stream is gone, with the journals of its first two attempts."""
    boss = Store(connect(bus_urls["supervisor"]), by="supervisor:test")
    boss.submit("j", "j", SPEC)
    for number in (1, 2, 3):
        boss.assign("j", SLOT, lambda _, __: None)
        job = store.claim("j", number, worker_pid=10)
        if number == 3:
            break
        if number == 2:
            store.note_attempt("j", number, EventKind.RESTORED, "restored", resumed_from="step-9-a1", resumed_step=9)
        path = Folders(data=data, job="j", attempt=number).journal
        path.parent.mkdir(parents=True)
        JournalWriter(path).metrics(1, {"loss": 0.5}, 1)
        at = CheckpointRef(name=f"step-9-a{number}", step=9, attempt=number, digest="d", storage="disk")
        store.accept_checkpoint("j", number, at)
        store.end_attempt("j", number, Outcome(reason=Reason.KILLED))
        boss.change("j", lambda job, now: boss.moved(job, JobState.QUEUED, now, cause="test", detail=None))
    store.client.delete(keys.metrics("j"))
    return job


def rounds(earlier: EarlierCurves) -> int:
    """How often it had more to do."""
    found = 0
    while found < 20 and earlier.ship():
        found += 1
    return found


def numbers(store: Store) -> list[int]:
    entries = cast(list[tuple[bytes, Any]], store.client.xrange(keys.metrics("j")))
    return [keys.parse_entry_id(entry)[0] for entry, _ in entries]


def test_they_are_written_again(store: Store, bus_urls: Mapping[str, str], tmp_path: Path) -> None:
    job = in_its_third_attempt(store, bus_urls, tmp_path)
    assert rounds(EarlierCurves(store, job, tmp_path)) > 0
    assert numbers(store) == [1, 1, 2, 2, 3]


def test_on_a_line_that_breaks_again_and_again_they_are_given_up(
    store: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    earlier = EarlierCurves(store, in_its_third_attempt(store, bus_urls, tmp_path), tmp_path)
    tries = 0
    while tries < 20 and earlier.ship():
        tries += 1
        store.client.connection_pool.disconnect()
    assert tries == 3
    assert not earlier.ship()
    assert not store.client.exists(keys.metrics_aside("j"))


def test_a_server_that_refuses_them_is_asked_three_times(
    store: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    earlier = EarlierCurves(store, in_its_third_attempt(store, bus_urls, tmp_path), tmp_path)
    with connect(bus_urls["tester"]) as tester:
        tester.execute_command("ACL", "SETUSER", "trainer", "-del")
        try:
            for _ in range(3):
                with pytest.raises(BusError):
                    earlier.ship()
            assert not earlier.ship()
        finally:
            tester.execute_command("ACL", "SETUSER", "trainer", "+del")


def test_a_journal_that_cannot_be_read_is_in_nobody_s_way(
    store: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    job = in_its_third_attempt(store, bus_urls, tmp_path)
    path = Folders(data=tmp_path, job="j", attempt=2).journal
    path.unlink()
    path.mkdir()
    assert rounds(EarlierCurves(store, job, tmp_path)) == 1
    assert numbers(store) == []


def test_an_attempt_whose_record_is_missing_is_in_nobody_s_way(
    store: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    job = in_its_third_attempt(store, bus_urls, tmp_path)
    with connect(bus_urls["tester"]) as tester:
        tester.delete(keys.attempt("j", 2))
    assert rounds(EarlierCurves(store, job, tmp_path)) == 0
