"""An attempt's decisions, without a process."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from trackside.bus.client import connect
from trackside.config import Settings
from trackside.models import Job, Reason, Slot
from trackside.store import Store
from trackside.testing import wait_until
from trackside_trainer import evidence
from trackside_trainer.attempt import AttemptRun
from trackside_trainer.patience import Patience
from worker_parts import JOB, URL

SLOT = Slot(id="box-gpu0", host="box", kind="gpu", storage="s1", gpu_uuid="GPU-a")
STORE = Store(connect(URL), by="worker:box-gpu0")


def specified(**spec: float) -> Job:
    return replace(JOB, slot=SLOT.id, spec=replace(JOB.spec, **spec))  # type: ignore[arg-type]  # real fields


def test_the_wait_for_a_gpu_is_not_counted_towards_the_attempt_s_time(tmp_path: Path) -> None:
    job = specified(timeout_s=0.001, attempt_timeout_s=0.001)
    run = AttemptRun(Settings(home=tmp_path), STORE, SLOT, job, seen_by="worker:box-gpu0")
    until_s = time.monotonic() + 0.01
    wait_until(lambda: time.monotonic() > until_s, 5, "no time passes")
    run.tick(Patience())
    assert not run.asked


def test_a_data_loader_that_the_kernel_killed_for_memory_is_no_error_of_the_script_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = [evidence.MemoryKills(count=count, where="the host") for count in (1, 2)]
    monkeypatch.setattr(evidence.MemoryKills, "now", lambda: counted.pop(0))
    run = AttemptRun(Settings(home=tmp_path), STORE, SLOT, specified(), seen_by="worker:box-gpu0")
    killed = "DataLoader worker (pid 12) is killed by signal: Killed. "
    end = {"k": "end", "outcome": "user_error", "error": {"type": "RuntimeError", "message": killed, "traceback": ""}}
    run._folders.root.mkdir(parents=True)
    run._folders.journal.write_text(json.dumps(end) + "\n")
    run._closing.ended(1 << 8, None)

    outcome = run._closing.outcome(None, run._asking)

    assert outcome.reason is Reason.OOM_HOST
    assert outcome.evidence == ("the kernel killed 1 process of the host for memory meanwhile",)
