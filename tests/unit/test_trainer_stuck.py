"""A process that no signal ends keeps its slot from work until the kernel lets it go.

No test can make one, so a process that merely lives stands for it, and the search for those who are left says that it
could not be ended.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from trackside import processes
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.store import Store
from trackside.testing import wait_until
from trackside_trainer import stuck
from trackside_trainer.attempt import AttemptRun
from trackside_trainer.leftovers import Death, Leftover
from trackside_trainer.patience import Patience
from trackside_trainer.slotfiles import TakenAttempt, taken_path
from trackside_trainer.stuck import StuckGate
from worker_parts import JOB, SLOT, URL, sleeping

hanging, other = pytest.fixture(sleeping, name="hanging"), pytest.fixture(sleeping, name="other")


def test_a_slot_is_closed_while_one_of_them_lives_and_opens_by_itself(
    tmp_path: Path, hanging: subprocess.Popen[bytes], other: subprocess.Popen[bytes]
) -> None:
    gate = StuckGate(tmp_path, SLOT.id)
    assert gate.passes()
    stuck.note(tmp_path, SLOT.id, [other.pid])
    stuck.note(tmp_path, SLOT.id, [hanging.pid])
    assert not gate.passes()
    pids = ", ".join(map(str, sorted((hanging.pid, other.pid))))
    assert (gate.words or "").startswith(f"what is left of an earlier attempt (pid {pids}) hangs in the kernel")
    other.kill()
    other.wait()
    assert not gate.passes()
    assert f"(pid {hanging.pid})" in (gate.words or "")
    assert StuckGate(tmp_path, "box-cpu1").passes(), "it is another slot's"
    hanging.kill()
    wait_until(gate.passes, 20, "the slot stays closed")
    assert gate.words is None
    assert not list((tmp_path / "run" / "stuck").iterdir())


def test_nobody_is_stuck_whose_pid_is_of_an_earlier_boot_or_whose_note_is_torn(
    tmp_path: Path, hanging: subprocess.Popen[bytes]
) -> None:
    stuck.note(tmp_path, SLOT.id, [hanging.pid])
    path = tmp_path / "run" / "stuck" / f"{SLOT.id}.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({**noted, "boot": "an earlier one"}))
    assert StuckGate(tmp_path, SLOT.id).passes()
    path.write_text(json.dumps({"processes": noted["processes"]}))
    assert not StuckGate(tmp_path, SLOT.id).passes(), "in which boot is not known"
    path.write_text(json.dumps(noted)[:-5])
    assert StuckGate(tmp_path, SLOT.id).passes()


def test_another_users_process_keeps_no_slot_from_work(
    tmp_path: Path, hanging: subprocess.Popen[bytes], other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, kill = other.pid, os.kill

    def guarded(pid: int, number: int) -> None:
        if pid == theirs and number == 0:
            raise PermissionError
        kill(pid, number)

    stuck.note(tmp_path, "box-cpu1", [theirs])
    monkeypatch.setattr(os, "kill", guarded)
    with capture_logs() as told:
        stuck.note(tmp_path, SLOT.id, [theirs])
    assert [(line["event"], line["pids"]) for line in told] == [("processes_of_another_user", [theirs])]
    assert StuckGate(tmp_path, SLOT.id).passes()
    assert StuckGate(tmp_path, "box-cpu1").passes(), "an earlier version has noted it"
    stuck.note(tmp_path, SLOT.id, [theirs, hanging.pid])
    gate = StuckGate(tmp_path, SLOT.id)
    assert not gate.passes()
    assert f"(pid {hanging.pid})" in (gate.words or "")


def test_a_slot_opens_whose_note_the_disk_does_not_let_go(tmp_path: Path, hanging: subprocess.Popen[bytes]) -> None:
    stuck.note(tmp_path, SLOT.id, [hanging.pid])
    gate = StuckGate(tmp_path, SLOT.id)
    assert not gate.passes()
    note = tmp_path / "run" / "stuck" / f"{SLOT.id}.json"
    note.unlink()
    note.mkdir()  # stands for a disk that removes nothing
    assert gate.passes()
    assert gate.words is None


def test_what_an_attempt_leaves_behind_is_noted_by_its_worker(
    tmp_path: Path, hanging: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = AttemptRun(Settings(home=tmp_path), Store(connect(URL), by="worker:s"), SLOT, JOB, seen_by="worker:s")
    monkeypatch.setattr(processes, "kill_until_gone", lambda find, *, limit_s: [hanging.pid])
    monkeypatch.setattr(processes, "reap", dict)
    with subprocess.Popen(["true"]) as ended:
        run.pid, run.pidfd = ended.pid, os.pidfd_open(ended.pid)
        run._on_exit()
        ended.returncode = 0  # it was waited for
    assert run.stage.value == "clearing", "its worker would not beat while it waits"
    assert StuckGate(tmp_path, SLOT.id).passes(), "it may still go"
    run._clear_until_s = 0.0
    run.tick(Patience())
    assert run.stage.value == "draining"
    assert not StuckGate(tmp_path, SLOT.id).passes()


def test_what_a_dead_worker_leaves_behind_is_noted_by_its_agent(
    tmp_path: Path, hanging: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = TakenAttempt(
        slot=SLOT.id, job="j", attempt=1, attempt_dir="/x", worker_pid=1, worker_started=1, pid=2, pid_started=2
    )
    leftover = Leftover(
        Settings(home=tmp_path), Store(connect(URL), by="agent:box"), URL, "s1", taken_path(tmp_path, "j", 1, 1), taken,
        Death.seen(9), "agent:box",
    )  # fmt: skip
    monkeypatch.setattr(processes, "kill_until_gone", lambda find, *, limit_s: [hanging.pid])
    leftover.kill()
    assert not StuckGate(tmp_path, SLOT.id).passes()
