"""What keeps a slot from work is asked in order, and told once each time that it changes."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from trackside.bus import queue
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.store import Store
from trackside.testing import wait_until
from trackside_trainer import stuck
from trackside_trainer.diskgate import DiskGate
from trackside_trainer.intake import Intake
from trackside_trainer.stuck import StuckGate
from trackside_trainer.worker import SlotWorker
from worker_parts import SLOT, URL, sleeping

FULL = OSError(errno.ENOSPC, "No space left on device", "/somewhere")


hanging = pytest.fixture(sleeping, name="hanging")


def test_the_first_gate_that_is_closed_says_why_and_each_change_is_told_once(
    tmp_path: Path, hanging: subprocess.Popen[bytes]
) -> None:
    disk, rq = DiskGate([tmp_path / "data"]), SlotWorker(SLOT.id, queue.rq_client(URL))
    gates = (disk, StuckGate(tmp_path, SLOT.id))
    intake = Intake(Settings(home=tmp_path), SLOT, Store(connect(URL), by="worker:s"), rq, gates)
    with capture_logs() as told:
        assert intake.is_open()
        disk.close(FULL)
        stuck.note(tmp_path, SLOT.id, [hanging.pid])
        assert not intake.is_open()
        assert intake.blocked == disk.words
        assert not intake.is_open()
        wait_until(lambda: not intake.is_open() and disk.words is None, 5, "the disk's gate stays closed")
        assert "hangs in the kernel" in (intake.blocked or "")
        hanging.kill()
        hanging.wait()
        assert intake.is_open()
        assert intake.is_open()
    assert intake.blocked is None
    changes = [(line["event"], str(line.get("why"))[:22]) for line in told if line["event"].startswith("slot_")]
    assert changes == [
        ("slot_blocked", "its host's disk takes "),
        ("slot_blocked", "what is left of an ear"),
        ("slot_open_again", "None"),
    ]
