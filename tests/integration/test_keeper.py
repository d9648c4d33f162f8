"""The ledger of a leading supervisor on a real server whose connections break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from full_disk import full_disk
from trackside.bus import keys, streams
from trackside.bus.client import Client, connect
from trackside.config import Settings
from trackside.models import JobSpec, Program
from trackside.store import Store
from trackside_supervisor import keeper as keeper_
from trackside_supervisor.keeper import Keeper
from trackside_supervisor.ledger import Ledger
from trackside_supervisor.older import Verdict

SPEC = JobSpec(program=Program(kind="script", target="train.py"))
ROOM_BYTES = 32 * 1024  # what a full disk takes of one file yet, so that the test's own output passes
LARGE = replace(SPEC, params={"text": "x" * ROOM_BYTES})


@pytest.fixture
def client(bus_urls: Mapping[str, str]) -> Iterator[Client]:
    with connect(bus_urls["supervisor"], name="supervisor") as found:
        yield found


def test_what_came_over_a_connection_that_broke_is_in_the_ledger_after_the_next_comparison(
    client: Client, tmp_path: Path
) -> None:
    store = Store(client, by="supervisor:test")
    keeper = Keeper(Settings.from_environ({}, home=tmp_path), client, store, lambda: True)
    assert keeper.settle() is Verdict.WHOLE
    store.submit("before", "before", SPEC)
    keeper.take_in(store.jobs(["before"]), streams.newest_event_id(client))

    store.submit("meanwhile", "meanwhile", SPEC)
    client.connection_pool.disconnect()
    jobs, cursor = store.jobs(["meanwhile"]), streams.newest_event_id(client)
    assert not keeper.sure, "the connection is the same"
    keeper.take_in(jobs, cursor)
    assert keeper.settle() is Verdict.WHOLE
    store.submit("after", "after", SPEC)
    keeper.take_in(store.jobs(["after"]), streams.newest_event_id(client))
    keeper.forget()

    assert set(Ledger.open(tmp_path / "ledger").jobs) == {"before", "meanwhile", "after"}


def test_a_connection_that_breaks_while_the_ledger_catches_up_ends_the_round_and_not_the_supervisor(
    client: Client, tmp_path: Path
) -> None:
    store = Store(client, by="supervisor:test")
    store.submit("first", "first", SPEC)
    breaks = iter([True])

    def renew() -> bool:
        """Called before each page."""
        if next(breaks, False):
            client.connection_pool.disconnect()
        return True

    keeper = Keeper(Settings.from_environ({}, home=tmp_path), client, store, lambda: True)
    keeper.settle()
    keeper.forget()
    store.submit("second", "second", SPEC)

    again = Keeper(Settings.from_environ({}, home=tmp_path), client, store, renew)
    with pytest.raises(Exception, match="compared with it again"):
        again.settle()
    assert again.settle() is Verdict.WHOLE
    again.forget()
    assert set(Ledger.open(tmp_path / "ledger").jobs) == {"first", "second"}


def kept(client: Client, home: Path, *job_ids: str) -> tuple[Store, Keeper]:
    """A keeper whose ledger has these jobs."""
    store = Store(client, by="supervisor:test")
    keeper = Keeper(Settings.from_environ({}, home=home), client, store, lambda: True)
    assert keeper.settle() is Verdict.WHOLE
    for job_id in job_ids:
        store.submit(job_id, job_id, LARGE)
    keeper.take_in(store.jobs(job_ids), streams.newest_event_id(client))
    return store, keeper


def lose(behind: Client, *job_ids: str) -> None:
    """Let the server have been without these jobs all along."""
    lost = [name for job_id in job_ids for name in (keys.job(job_id), keys.history(job_id))]
    behind.delete(keys.EVENTS, keys.LIVE_JOBS, keys.JOBS, *lost)


@pytest.mark.parametrize("died", [True, False])
def test_a_server_that_has_less_is_noticed_though_the_disk_does_not_take_the_ledger(
    client: Client, bus_urls: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: bool
) -> None:
    """A full disk is what may have cut the server's own file short."""
    monkeypatch.setattr(keeper_, "_RETRY_S", 0.0)
    store, keeper = kept(client, tmp_path, "before")
    known = {"before"}
    if died:
        keeper.forget()
        keeper = Keeper(Settings.from_environ({}, home=tmp_path), client, store, lambda: True)
    with full_disk(ROOM_BYTES):
        if not died:
            store.submit("meanwhile", "meanwhile", SPEC)
            keeper.take_in(store.jobs(["meanwhile"]), streams.newest_event_id(client))
            known.add("meanwhile")
        with connect(bus_urls["tester"]) as behind:
            lose(behind, *sorted(known))
        client.connection_pool.disconnect()
        assert keeper.settle() is Verdict.OLDER
        assert {job.id for job in store.jobs(store.live_job_ids())} == known
        assert keeper.settle() is None, "one look is enough"
    assert keeper.settle() is None
    keeper.forget()
    assert set(Ledger.open(tmp_path / "ledger").jobs) == known


def test_a_snapshot_that_came_while_the_disk_was_full_is_copied_later(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_, "_RETRY_S", 0.0)
    store, keeper = kept(client, tmp_path)
    with full_disk(ROOM_BYTES):
        store.submit("j", "j", replace(SPEC, snapshot="ab" * 32), snapshot=b"x" * 2 * ROOM_BYTES)
        keeper.take_in(store.jobs(["j"]), streams.newest_event_id(client))
    keeper.settle()
    keeper.forget()
    assert Ledger.open(tmp_path / "ledger").snapshot("ab" * 32) == b"x" * 2 * ROOM_BYTES


def test_one_record_that_cannot_be_read_does_not_end_the_comparison(
    client: Client, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    store, keeper = kept(client, tmp_path, "a", "b")
    with connect(bus_urls["tester"]) as behind:
        behind.hset(keys.job("a"), "attempt", b"?")
        client.connection_pool.disconnect()
        assert keeper.settle() is Verdict.WHOLE
        lose(behind, "b")
    client.connection_pool.disconnect()
    assert keeper.settle() is Verdict.OLDER
    assert [job.id for job in store.jobs(["a", "b"])] == ["b"]


def test_a_snapshot_that_cannot_be_read_does_not_end_the_rebuild(
    client: Client, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    store, keeper = kept(client, tmp_path)
    store.submit("j", "j", replace(SPEC, snapshot="ab" * 32), snapshot=b"x")
    keeper.take_in(store.jobs(["j"]), streams.newest_event_id(client))
    archive = tmp_path / "ledger" / "snapshots" / ("ab" * 32)
    archive.unlink()
    archive.mkdir()
    with connect(bus_urls["tester"]) as behind:
        lose(behind, "j")
    client.connection_pool.disconnect()
    assert keeper.settle() is Verdict.OLDER
    assert [job.id for job in store.jobs(["j"])] == ["j"]
