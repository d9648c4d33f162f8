"""A worker's loop, one step at a time."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from trackside.bus.client import connect
from trackside.config import Settings
from trackside.store import Store
from trackside_trainer.attempt import AttemptRun
from trackside_trainer.slotfiles import slot_lock
from trackside_trainer.work import Work
from worker_parts import JOB, SLOT, URL


def test_a_disk_that_removes_nothing_ends_no_worker_at_the_end_of_an_attempt(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    work = Work(settings, SLOT, URL, slot_lock(tmp_path, SLOT.id))
    run = AttemptRun(settings, Store(connect(URL), by="worker:s"), SLOT, JOB, seen_by="worker:s")
    setattr(work, "_run", run)  # noqa: B010 -- so that the type checker does not take it for settled
    run.taken_path.mkdir(parents=True)  # no unlink removes a folder
    with capture_logs() as told:
        work._finish(run)
    assert work._run is None
    assert [line["path"] for line in told if line["event"] == "taken_not_removed"] == [str(run.taken_path)]
