"""Records that the bus does not take: told of, and in the way of none behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from store_world import events_of, started
from trackside.bus import keys, streams
from trackside.bus.client import connect
from trackside.models import EventKind
from trackside.sdk.checkpoints import CheckpointStore
from trackside.sdk.journal import JournalWriter
from trackside.store import Store
from trackside_trainer.folders import Folders
from trackside_trainer.shipping import JournalTail, OutputTail
from trackside_trainer.spacing import ENOUGH_BYTES

LARGE = {f"layer{at:05}.weight.grad_norm": 0.123456789012345 for at in range(25_000)}  # over 1 MiB as a line


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["supervisor"]), by="supervisor:test")


@pytest.fixture
def folders(store: Store, fresh_home: Path) -> Folders:
    started(store)
    made = Folders(data=fresh_home, job="j", attempt=1)
    made.root.mkdir(parents=True)
    return made


def shipped(store: Store, folders: Folders) -> tuple[list[int], dict[str, Any]]:
    """The steps and the summary that are on the bus once all of the journal has been shipped."""
    tail = JournalTail(store, "j", 1, folders.journal, "disk")
    while tail.ship():
        pass
    found = [batch for _, _, batch in streams.batches(store.client, "j")]
    summary = {name: value for batch in found for name, value in batch.summary.items()}
    return [step for batch in found for step in batch.steps], summary


def warnings(store: Store) -> list[str]:
    return [
        event.data["text"]
        for event in events_of(store, "j")
        if event.kind is EventKind.NOTE and event.data.get("level") == "warning"
    ]


def test_records_that_are_too_large_are_told_of_once_a_kind(store: Store, folders: Folders) -> None:
    journal = JournalWriter(folders.journal)
    for step in (1, 2):
        journal.metrics(step, LARGE, 1)
    journal.metrics(3, {"loss": 1.0}, 1)
    journal.write({"k": "summary", "t": 1, "m": {"text": "x" * 1_100_000}})
    journal.write({"k": "summary", "t": 1, "m": {"acc": 0.9}})
    journal.close()

    assert shipped(store, folders) == ([3], {"acc": 0.9})
    metrics, summary = warnings(store)
    assert metrics.startswith("a record of 1")
    assert "metrics of step 1" in metrics
    assert "summary" in summary


def test_damaged_lines_before_a_record_do_not_make_it_too_large(store: Store, folders: Folders) -> None:
    written = CheckpointStore(folders.checkpoints, 1).write(2, {"model.pt": lambda out: out.write(b"state")})
    folders.journal.write_bytes(b"\0" * 1_200_000 + b"\n")
    journal = JournalWriter(folders.journal)
    journal.write({"k": "ck", "t": 1, "s": 2, "name": written.name, "digest": written.digest})
    journal.close()

    shipped(store, folders)
    assert [ref.name for ref in store.job("j").checkpoints] == [written.name]
    assert warnings(store) == []


def test_steps_that_no_reader_could_hold_are_told_of_once(store: Store, folders: Folders) -> None:
    journal = JournalWriter(folders.journal)
    for step in (1_700_000_000_000_000_000, 1_700_000_000_000_000_001, 3):
        journal.metrics(step, {"loss": 1.0}, 1)
    journal.close()

    assert shipped(store, folders) == ([3], {})
    (told,) = warnings(store)
    assert "step 1700000000000000000" in told


def test_a_few_numbers_wait_for_company_once_their_stream_fills_and_nothing_else_does(
    store: Store, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "METRICS_MAXLEN", 4)
    journal, running = JournalWriter(folders.journal), [True]
    tail = JournalTail(store, "j", 1, folders.journal, "disk", more_comes=lambda: bool(running))
    journal.metrics(1, {"loss": 1.0}, 1)
    assert tail.ship()
    journal.metrics(2, {"loss": 1.0}, 1)
    assert not tail.ship()
    assert not tail.ship()
    journal.write({"k": "note", "t": 1, "level": "warning", "text": "of more than numbers"})
    assert tail.ship()
    assert warnings(store) == ["of more than numbers"]
    journal.metrics(3, {"loss": 1.0}, 1)
    assert not tail.ship()
    for step in range(4, 4 + ENOUGH_BYTES // 30):
        journal.metrics(step, {"loss": 1.0}, 1)
    assert tail.ship()
    journal.metrics(9_999, {"loss": 1.0}, 1)
    assert not tail.ship()
    running.clear()
    assert tail.ship()
    steps = [step for _, _, batch in streams.batches(store.client, "j") for step in batch.steps]
    assert steps == [*range(1, 4 + ENOUGH_BYTES // 30), 9_999]


def test_a_little_output_waits_for_company_once_its_stream_fills(
    store: Store, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "OUTPUT_MAXLEN", 4)
    running = [True]
    tail = OutputTail(store.client, "j", 1, folders.output, 1 << 20, more_comes=lambda: bool(running))
    with folders.output.open("ab", buffering=0) as output:
        output.write(b"first\n")
        assert tail.ship()
        output.write(b"a little\n")
        assert not tail.ship()
        output.write(b"x" * ENOUGH_BYTES)
        assert tail.ship()
        output.write(b"the last\n")
        while tail.ship():
            pass
        running.clear()
        assert tail.ship()
    assert b"".join(text for _, _, text in streams.output(store.client, "j")) == folders.output.read_bytes()
