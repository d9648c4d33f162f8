"""The curves of earlier attempts on a server that lost them: written again, and never in the way of what runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from makers import SLOT, SPEC, a_checkpoint
from store_world import moved
from trackside.bus import keys, streams
from trackside.bus.client import connect
from trackside.errors import BusError
from trackside.models import Batch, EventKind, Job, JobState, Outcome, Reason
from trackside.sdk.journal import JournalWriter
from trackside.store import Store
from trackside_trainer.earlier import EarlierCurves
from trackside_trainer.folders import Folders


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["trainer"]), by="worker:h-cpu0")


@pytest.fixture
def boss(bus_urls: Mapping[str, str]) -> Iterator[Store]:
    """A store that writes as the supervisor does, and has put a job on the bus."""
    with connect(bus_urls["supervisor"]) as client:
        boss = Store(client, by="supervisor:test")
        boss.submit("j", "j", SPEC)
        yield boss


def in_its_third_attempt(store: Store, boss: Store, data: Path) -> Job:
    """The job, its metrics stream gone, with the journals of its first two attempts."""
    for number in (1, 2):
        started(store, boss, number, resumed_step=9 if number > 1 else None)
        journal(data, number)
        store.accept_checkpoint("j", number, a_checkpoint(9, number))
        ended(store, boss, number)
    job = started(store, boss, 3)
    store.client.delete(keys.metrics("j"))
    return job


def started(store: Store, boss: Store, number: int, resumed_step: int | None = None) -> Job:
    """The job with its next attempt, which has told the step that it resumed from if it has come so far."""
    boss.assign("j", SLOT, lambda _, __: None)
    job = store.claim("j", number, worker_pid=10)
    if resumed_step is not None:
        store.note_attempt("j", number, EventKind.RESTORED, "restored", resumed_from="x", resumed_step=resumed_step)
    return job


def ended(store: Store, boss: Store, number: int) -> None:
    store.end_attempt("j", number, Outcome(reason=Reason.KILLED))
    moved(boss, "j", JobState.QUEUED)


def journal(data: Path, number: int) -> None:
    path = Folders(data=data, job="j", attempt=number).journal
    path.parent.mkdir(parents=True)
    JournalWriter(path).metrics(number, {"loss": 0.5}, number)


def rounds(earlier: EarlierCurves) -> int:
    """How often it had more to do."""
    found = 0
    while found < 20 and earlier.ship():
        found += 1
    return found


def numbers(store: Store) -> list[int]:
    entries = cast(list[tuple[bytes, Any]], store.client.xrange(keys.metrics("j")))
    return [keys.parse_entry_id(entry)[0] for entry, _ in entries]


def test_they_are_written_again(store: Store, boss: Store, tmp_path: Path) -> None:
    job = in_its_third_attempt(store, boss, tmp_path)
    assert rounds(EarlierCurves(store, job, tmp_path)) > 0
    assert numbers(store) == [1, 1, 2, 2, 3]


def steps(store: Store) -> list[tuple[int, int]]:
    """Each shipped step, with its attempt."""
    found = streams.batches(store.client, "j")
    return [(number, step) for _, number, batch in found for step in batch.steps]


@pytest.mark.parametrize(
    ("opened", "back"), [((1, 2, 3), [(1, 1)]), ((2, 3), [(1, 1), (2, 2)]), ((2,), [(1, 1), (2, 2)])]
)
def test_so_they_are_where_a_rebuild_has_opened_the_stream_for_an_attempt_that_had_ended(
    store: Store, boss: Store, tmp_path: Path, opened: tuple[int, ...], back: list[tuple[int, int]]
) -> None:
    job = in_its_third_attempt(store, boss, tmp_path)
    for number in opened:
        store.client.xadd(keys.metrics("j"), {"open": str(number)}, id=keys.entry_id(number, 0))
    assert rounds(EarlierCurves(store, job, tmp_path)) > 0
    assert steps(store) == back
    assert numbers(store)[-1] == 3
    before = store.client.xrange(keys.metrics("j"))
    assert rounds(EarlierCurves(store, job, tmp_path)) == 0, "they are written a second time"
    assert store.client.xrange(keys.metrics("j")) == before


def test_a_stream_is_left_as_it_is_whose_first_attempt_told_nothing(store: Store, boss: Store, tmp_path: Path) -> None:
    started(store, boss, 1)
    ended(store, boss, 1)
    job = started(store, boss, 2)
    assert rounds(EarlierCurves(store, job, tmp_path)) == 0
    assert numbers(store) == [1, 2]


def test_where_an_attempt_has_no_steps_that_count_its_journal_is_read_once(
    store: Store, boss: Store, tmp_path: Path
) -> None:
    started(store, boss, 1)
    journal(tmp_path, 1)
    ended(store, boss, 1)
    job = started(store, boss, 2)  # without a checkpoint, so it begins with the first step
    assert rounds(EarlierCurves(store, job, tmp_path)) > 0
    assert steps(store) == []
    assert rounds(EarlierCurves(store, job, tmp_path)) == 0, "it is read at each connection"


def test_whoever_dies_at_it_is_followed_by_the_next_attempt(store: Store, boss: Store, tmp_path: Path) -> None:
    third = in_its_third_attempt(store, boss, tmp_path)
    store.client.xadd(keys.metrics("j"), {"open": "3"}, id="3-0")  # as a rebuild does
    streams.ship_batch(store.client, "j", 3, 50, Batch(steps=(3,), at_ms=(3,), series={"loss": (0.5,)}))
    assert EarlierCurves(store, third, tmp_path).ship(), "it is not in the middle of it"
    assert store.client.exists(keys.metrics_aside("j"))

    ended(store, boss, 3)
    fourth = started(store, boss, 4)
    rounds(EarlierCurves(store, fourth, tmp_path))

    assert numbers(store) == [1, 1, 2, 2, 3, 3, 4]
    assert steps(store) == [(1, 1), (2, 2), (3, 3)]
    assert not store.client.exists(keys.metrics_aside("j"))


def test_what_was_logged_on_an_axis_of_its_own_comes_back_as_far_as_no_later_attempt_did_it_again(
    store: Store, boss: Store, tmp_path: Path
) -> None:
    started(store, boss, 1)
    folders = Folders(data=tmp_path, job="j", attempt=1)
    folders.journal.parent.mkdir(parents=True)
    writer = JournalWriter(folders.journal)
    for step in range(1, 13):
        writer.metrics(step, {"loss": 0.5}, 1)
        writer.metrics(step * 64, {"val": 0.5}, 1)
        if step % 3 == 0:
            writer.write({"k": "due", "t": 1, "s": step})
    writer.write({"k": "summary", "t": 1, "m": {"n_params": 5}})
    writer.close()
    store.accept_checkpoint("j", 1, a_checkpoint(9, 1))
    ended(store, boss, 1)
    second = started(store, boss, 2)
    store.client.delete(keys.metrics("j"))

    rounds(EarlierCurves(store, second, tmp_path))

    assert sorted(step for _, step in steps(store)) == [*range(1, 10), *range(64, 9 * 64 + 1, 64)]
    found = streams.batches(store.client, "j")
    assert {name: value for _, _, batch in found for name, value in batch.summary.items()} == {"n_params": 5}


def test_what_one_that_died_at_it_left_is_removed_also_where_nothing_is_lost(
    store: Store, boss: Store, tmp_path: Path
) -> None:
    job = in_its_third_attempt(store, boss, tmp_path)
    rounds(EarlierCurves(store, job, tmp_path))
    store.client.xadd(keys.metrics_aside("j"), {"open": "1"}, id="1-0")
    rounds(EarlierCurves(store, job, tmp_path))
    assert not store.client.exists(keys.metrics_aside("j"))
    assert numbers(store) == [1, 1, 2, 2, 3]


def test_an_attempt_that_did_no_step_takes_none_from_the_one_before(store: Store, boss: Store, tmp_path: Path) -> None:
    started(store, boss, 1)
    journal(tmp_path, 1)
    at = a_checkpoint(9)
    store.accept_checkpoint("j", 1, at)
    ended(store, boss, 1)
    started(store, boss, 2)  # and dies before it has restored anything
    ended(store, boss, 2)
    third = started(store, boss, 3)
    store.client.delete(keys.metrics("j"))

    rounds(EarlierCurves(store, third, tmp_path))
    assert steps(store) == [(1, 1)]


def test_on_a_line_that_breaks_again_and_again_they_are_given_up(store: Store, boss: Store, tmp_path: Path) -> None:
    earlier = EarlierCurves(store, in_its_third_attempt(store, boss, tmp_path), tmp_path)
    tries = 0
    while tries < 20 and earlier.ship():
        tries += 1
        store.client.connection_pool.disconnect()
    assert tries == 3
    assert not earlier.ship()
    assert not store.client.exists(keys.metrics_aside("j"))


def test_a_server_that_refuses_them_is_asked_three_times(
    store: Store, boss: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    earlier = EarlierCurves(store, in_its_third_attempt(store, boss, tmp_path), tmp_path)
    with connect(bus_urls["tester"]) as tester:
        tester.execute_command("ACL", "SETUSER", "trainer", "-del")
        try:
            for _ in range(3):
                with pytest.raises(BusError):
                    earlier.ship()
            assert not earlier.ship()
        finally:
            tester.execute_command("ACL", "SETUSER", "trainer", "+del")


def test_a_journal_that_cannot_be_read_is_in_nobody_s_way(store: Store, boss: Store, tmp_path: Path) -> None:
    job = in_its_third_attempt(store, boss, tmp_path)
    path = Folders(data=tmp_path, job="j", attempt=2).journal
    path.unlink()
    path.mkdir()
    assert rounds(EarlierCurves(store, job, tmp_path)) == 1
    assert numbers(store) == []


def test_an_attempt_whose_record_is_missing_is_in_nobody_s_way(
    store: Store, boss: Store, bus_urls: Mapping[str, str], tmp_path: Path
) -> None:
    job = in_its_third_attempt(store, boss, tmp_path)
    with connect(bus_urls["tester"]) as tester:
        tester.delete(keys.attempt("j", 2))
    assert rounds(EarlierCurves(store, job, tmp_path)) == 0
