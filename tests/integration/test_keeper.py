"""The ledger of a leading supervisor on a real server whose connections break."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trackside.bus import streams
from trackside.bus.client import Client, connect
from trackside.config import Settings
from trackside.models import JobSpec, Program
from trackside.store import Store
from trackside_supervisor.keeper import Keeper
from trackside_supervisor.ledger import Ledger
from trackside_supervisor.older import Verdict

SPEC = JobSpec(program=Program(kind="script", target="train.py"))


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
