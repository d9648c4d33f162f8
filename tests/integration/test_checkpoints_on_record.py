"""The record names only checkpoints that are there and can be used, and no attempt starts over where it names some."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from makers import SLOT, a_checkpoint
from store_world import events_of, moved, push_nothing, started
from trackside.bus.client import connect
from trackside.checkpointrecords import CHECKPOINTS_KEPT, OnDisk
from trackside.errors import InvalidJob
from trackside.models import EventKind, Job, JobState, Outcome, Reason
from trackside.sdk.checkpoints import CheckpointStore
from trackside.store import Change, Store
from trackside_trainer.folders import Folders, prepare
from trackside_trainer.shipping import JournalTail


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["supervisor"]), by="supervisor:test")


def seen(*names: str) -> OnDisk:
    return OnDisk(storage=SLOT.storage, names=frozenset(names))


def steps(job: Job) -> list[int]:
    return [ref.step for ref in job.checkpoints]


def told(store: Store, kind: EventKind) -> list[object]:
    """What each event of a kind says is gone."""
    return [event.data.get("gone") for event in events_of(store, "j") if event.kind is kind]


def next_attempt(store: Store) -> int:
    """End the open attempt by a kill, and give the job's next one."""
    job = store.job("j")
    store.end_attempt("j", job.attempt, Outcome(reason=Reason.KILLED))
    moved(store, "j", JobState.QUEUED)
    job = store.assign("j", SLOT, push_nothing)
    store.claim("j", job.attempt, worker_pid=11)
    return job.attempt


def brought_to(store: Store, **fields: Any) -> Job:
    return store.change("j", lambda job, _: Change(job=replace(job, **fields)))


def test_an_accepted_checkpoint_takes_those_off_the_record_that_were_pruned(store: Store) -> None:
    started(store)
    elsewhere, inherited = a_checkpoint(3, storage="other"), a_checkpoint(2, 0, job="old")
    brought_to(store, checkpoints=(a_checkpoint(20), a_checkpoint(10), elsewhere, inherited))
    job = store.accept_checkpoint("j", 1, a_checkpoint(30), seen("step-30-a1", "step-20-a1"))
    assert steps(job) == [30, 20, 3, 2]
    assert told(store, EventKind.CHECKPOINT) == [["step-10-a1"]]
    assert store.accept_checkpoint("j", 1, a_checkpoint(30), seen("step-30-a1", "step-20-a1")) == job


def test_a_damaged_checkpoint_leaves_the_record_and_lower_steps_are_progress_again(store: Store) -> None:
    started(store)
    for step in range(10, 10 * (CHECKPOINTS_KEPT + 1), 10):
        store.accept_checkpoint("j", 1, a_checkpoint(step))
    number = next_attempt(store)
    brought_to(store, barren=2, failures=2)
    for step in range(10, 10 * (CHECKPOINTS_KEPT + 1), 10):
        job = store.note_damaged("j", number, f"step-{step}-a1", "cut short")
    assert steps(job) == []
    job = store.accept_checkpoint("j", number, a_checkpoint(5, number))
    assert (steps(job), job.barren, job.failures) == ([5], 0, 0)
    assert store.note_damaged("j", number, "step-10-a1", "cut short", again=True) == job
    assert len(told(store, EventKind.NOTE)) == CHECKPOINTS_KEPT


def test_a_damaged_copy_of_another_jobs_checkpoint_leaves_the_record(store: Store) -> None:
    started(store)
    brought_to(store, checkpoints=(a_checkpoint(20, 0, job="old"), a_checkpoint(10, 0, job="old")))
    assert steps(store.note_damaged("j", 1, "step-00000020-a0", "cut", adopted=20)) == [10]


def test_what_is_gone_when_a_run_goes_on_leaves_the_record_but_never_all_of_it(store: Store) -> None:
    started(store)
    for step in (10, 20, 30):
        store.accept_checkpoint("j", 1, a_checkpoint(step))
    job = store.note_restored("j", 1, "step-20-a1", 20, seen("step-20-a1", "step-10-a1"))
    assert steps(job) == [20, 10]
    assert store.attempt("j", 1).resumed_step == 20
    assert steps(store.note_pruned("j", 1, seen("step-20-a1"))) == [20]
    assert steps(store.note_pruned("j", 1, seen())) == [20], "with an empty record the next attempt would start over"


def line(**fields: object) -> bytes:
    return orjson.dumps({"t": 1, **fields}) + b"\n"


def saved(folders: Folders, *of: int) -> list[dict[str, object]]:
    """Checkpoints of these steps on the disk, and the journal's lines of them."""
    disk = CheckpointStore(folders.checkpoints, folders.attempt)
    written = [disk.write(step, {"model.pt": lambda out: out.write(b"state")}) for step in of]
    return [{"k": "ck", "s": each.step, "name": each.name, "digest": each.digest} for each in written]


def shipped(store: Store, folders: Folders, *lines: Mapping[str, object]) -> tuple[Job, list[int]]:
    """The record once a journal of these lines has been shipped, and what the page was told is accepted."""
    folders.root.mkdir(parents=True, exist_ok=True)
    with folders.journal.open("ab") as journal:
        journal.writelines(line(**each) for each in lines)
    accepted: list[int] = []
    number = folders.attempt
    tail = JournalTail(store, "j", number, folders.journal, SLOT.storage, on_accepted=accepted.append)
    while tail.ship():
        pass
    return store.job("j"), accepted


def test_a_runs_journal_keeps_the_record_as_the_disk_is(store: Store, fresh_home: Path) -> None:
    started(store)
    folders = Folders(data=fresh_home, job="j", attempt=1)
    job, _ = shipped(store, folders, *saved(folders, 10, 20, 30))
    assert steps(job) == [30, 20, 10]
    shutil.rmtree(folders.checkpoints / "step-00000010-a1")
    job, _ = shipped(store, folders, {"k": "end", "outcome": "paused", "s": 30, "error": None})
    assert steps(job) == [30, 20]
    shutil.rmtree(folders.checkpoints / "step-00000030-a1")
    again = replace(folders, attempt=next_attempt(store))
    damaged = {"k": "damaged", "name": "step-00000020-a1", "why": "cut short"}
    job, accepted = shipped(store, again, damaged, *saved(again, 5))
    assert steps(job) == [5]
    assert accepted == [5], "the page names what a next attempt goes on from, so that it is not pruned"


def on_disk(store: Store, home: Path) -> tuple[Folders, Job]:
    """A queued job with checkpoints of steps 10, 20 and 30, and the folders of its next attempt."""
    started(store)
    folders = Folders(data=home, job="j", attempt=1)
    shipped(store, folders, *saved(folders, 10, 20, 30))
    store.end_attempt("j", 1, Outcome(reason=Reason.PAUSED))
    return replace(folders, attempt=2), moved(store, "j", JobState.QUEUED)


def nothing(folders: Folders) -> None:
    pass


def moved_away(folders: Folders) -> None:
    folders.checkpoints.rename(folders.checkpoints.with_name("elsewhere"))


def newest_set_aside(folders: Folders) -> None:
    newest = folders.checkpoints / "step-00000030-a1"
    newest.rename(newest.with_name(f"damaged-{newest.name}"))


@pytest.mark.parametrize(("harm", "fine"), [(nothing, True), (newest_set_aside, True), (moved_away, False)])
def test_an_attempt_whose_checkpoints_are_gone_is_not_made_ready(
    store: Store, fresh_home: Path, harm: Callable[[Folders], None], fine: bool
) -> None:
    folders, job = on_disk(store, fresh_home)
    harm(folders)
    if fine:
        context = prepare(folders, store, job, SLOT, journal_max_bytes=1 << 20)
        assert [point.step for point in context.resume or ()] == [30, 20, 10]
        return
    with pytest.raises(InvalidJob, match=r"step-00000030-a1 is missing \(there: none\).*trackside retry"):
        prepare(folders, store, job, SLOT, journal_max_bytes=1 << 20)


def test_an_attempt_that_was_sent_back_to_one_that_is_gone_goes_no_further_back(store: Store, fresh_home: Path) -> None:
    folders, job = on_disk(store, fresh_home)
    shutil.rmtree(folders.checkpoints / "step-00000020-a1")
    back = replace(job, checkpoints=job.checkpoints[1:])
    with pytest.raises(InvalidJob, match=r"step-00000020-a1 is missing \(there: step-00000030-a1, step-00000010-a1\)"):
        prepare(folders, store, back, SLOT, journal_max_bytes=1 << 20)
    diverged = replace(back, bad_step=25)  # what is newer holds the cause
    context = prepare(folders, store, diverged, SLOT, journal_max_bytes=1 << 20)
    assert [point.step for point in context.resume or ()] == [20, 10]


def test_a_job_without_checkpoints_starts_at_its_first_step(store: Store, fresh_home: Path) -> None:
    folders, job = on_disk(store, fresh_home)
    context = prepare(folders, store, replace(job, checkpoints=()), SLOT, journal_max_bytes=1 << 20)
    assert context.resume == ()
