"""An attempt's decisions before there is a process."""

from __future__ import annotations

import time
from pathlib import Path

from trackside.bus.client import connect
from trackside.config import Settings
from trackside.models import Job, JobSpec, JobState, Program, Slot
from trackside.store import Store
from trackside.testing import wait_until
from trackside_trainer.attempt import AttemptRun
from trackside_trainer.patience import Patience

SLOT = Slot(id="box-gpu0", host="box", kind="gpu", storage="s1", gpu_uuid="GPU-a")


def test_the_wait_for_a_gpu_is_not_counted_towards_the_attempt_s_time(tmp_path: Path) -> None:
    spec = JobSpec(program=Program(kind="script", target="train.py"), timeout_s=0.001, attempt_timeout_s=0.001)
    job = Job(
        id="j", name="j", state=JobState.RUNNING, spec=spec, created_at_ms=0, changed_at_ms=0, attempt=1, slot=SLOT.id
    )
    store = Store(connect("redis://127.0.0.1:1"), by="worker:box-gpu0")
    run = AttemptRun(Settings(home=tmp_path), store, SLOT, job, seen_by="worker:box-gpu0")
    until_s = time.monotonic() + 0.01
    wait_until(lambda: time.monotonic() > until_s, 5, "no time passes")
    run.tick(Patience())
    assert not run.asked
