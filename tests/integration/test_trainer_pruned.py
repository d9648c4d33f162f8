"""Checkpoints that were pruned, or moved away between two attempts: what the record names, and what is not done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from makers import SLOT, SPEC
from store_world import moved
from trackside.bus.client import connect
from trackside.models import Job, JobState, Reason
from trackside.store import Store
from trackside_trainer.folders import Folders
from trackside_trainer.shipping import JournalTail
from trainer_harness import Trainer

DIGEST = "0" * 64
SAVING = """
import time, torch, trackside
run = trackside.init()
state = run.checkpointer(model=torch.nn.Linear(1, 1), every=2, keep=2, background=False)
for step in run.steps(20):
    print("step", step, flush=True)
    if step == 11 and run.attempt == 1:
        raise ValueError("once")
"""


def test_only_what_is_there_is_accepted(bus_urls: Mapping[str, str], fresh_home: Path) -> None:
    store = Store(connect(bus_urls["supervisor"]), by="supervisor:test")
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, lambda _, __: None)
    store.claim("j", 1, worker_pid=10)
    folders = Folders(data=fresh_home, job="j", attempt=1)
    folders.root.mkdir(parents=True)
    lines = (f'{{"k":"ck","t":1,"s":{step},"name":"step-0000000{step}-a1","digest":"{DIGEST}"}}\n' for step in (1, 2))
    folders.journal.write_text("".join(lines))
    (folders.checkpoints / "step-00000002-a1").mkdir(parents=True)
    told: list[int] = []
    tail = JournalTail(store, "j", 1, folders.journal, "disk", on_accepted=told.append)
    while tail.ship():
        pass
    assert [ref.step for ref in store.job("j").checkpoints] == [2]
    assert told == [2]


@pytest.fixture
def trainer(fresh_home: Path, bus_urls: Mapping[str, str]) -> Iterator[Trainer]:
    with Trainer(fresh_home, bus_urls) as running:
        yield running


def failed_once(trainer: Trainer) -> tuple[Job, Path]:
    """A job that may go on, and its folder of checkpoints."""
    job = trainer.assign(SAVING)
    assert trainer.ended(job).reason is Reason.USER_ERROR
    return moved(trainer.store, job.id, JobState.QUEUED), trainer.home / "jobs" / job.id / "checkpoints"


def on_disk(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("step-*")), reverse=True)


def test_the_record_of_a_run_names_what_lies_on_the_disk(trainer: Trainer) -> None:
    job, folder = failed_once(trainer)
    assert [ref.name for ref in job.checkpoints] == on_disk(folder)
    assert len(job.checkpoints) < 5, "nothing was pruned"


def test_an_attempt_whose_checkpoints_were_moved_away_starts_nothing(trainer: Trainer) -> None:
    job, folder = failed_once(trainer)
    away = folder.rename(folder.with_name("away"))
    before = sorted(path.name for path in away.iterdir())
    again = trainer.give(job.id)
    outcome = trainer.ended(again)
    assert outcome.reason is Reason.INVALID_JOB
    assert "step-00000010-a1 is missing" in (outcome.detail or "")
    assert trainer.output(job).count("step 1\n") == 1, "it started over"
    assert sorted(path.name for path in away.iterdir()) == before
    assert trainer.store.job(job.id).checkpoints == job.checkpoints, "they may be put back"


def test_what_a_run_finds_damaged_leaves_the_record_and_it_goes_on_before_that(trainer: Trainer) -> None:
    job, folder = failed_once(trainer)
    (folder / "step-00000010-a1" / "model.pt").write_bytes(b"cut")
    again = trainer.give(job.id)
    assert trainer.ended(again).reason is Reason.SUCCEEDED
    assert trainer.attempt(again).resumed_step == 8
    assert [ref.name for ref in trainer.store.job(job.id).checkpoints] == on_disk(folder)
