"""Children: whom nobody would see to is ended, whenever its parent dies and whatever the host refuses."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attempts import LIMIT_S, context
from trackside import processes
from trackside.cli.scene import frozen
from trackside.config import Settings
from trackside.serviceprocess import Service
from trackside.testing import wait_until
from trackside_trainer import launch
from trackside_trainer.places import WorkerHandle
from worker_parts import SLOT, URL

# A parent with a handler of its own is killed while its child is on the way to another program.
KILLED_BETWEEN_FORK_AND_EXEC = """
import os, signal, subprocess
from trackside.processes import die_with_parent

signal.signal(signal.SIGTERM, lambda *_: None)
parent = os.getpid()

def begin():
    die_with_parent(signal.SIGTERM, parent)
    os.write(1, f"{os.getpid()}\\n".encode())
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        pass

subprocess.Popen(["sleep", "60"], preexec_fn=begin)
"""


def test_a_child_whose_parent_dies_before_its_program_begins_ends_too() -> None:
    command = [sys.executable, "-c", KILLED_BETWEEN_FORK_AND_EXEC]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        started = processes.start_time(pid)
        try:
            wait_until(lambda: not processes.alive(pid, started), LIMIT_S, "the child lives on by itself")
        finally:
            if processes.alive(pid, started):
                os.kill(pid, signal.SIGKILL)
    assert parent.returncode == -signal.SIGKILL


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    """What comes of the next fork, on a host that has no descriptor left to watch it by."""
    process = subprocess.Popen(["sleep", "60"])

    def refuse(pid: int) -> int:
        raise OSError(errno.ENFILE, f"Too many open files in system, for {pid}")

    monkeypatch.setattr(os, "fork", lambda: process.pid)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    return process


def _worker(folder: Path) -> object:
    return WorkerHandle.fork(Settings(home=folder), SLOT, URL)


def _attempt(folder: Path) -> object:
    made = context(folder)
    return launch.start(made, folder / "attempt.json", output=folder / "output.log", python=None, home=folder)


@pytest.mark.parametrize("fork", [_worker, _attempt])
def test_a_child_that_cannot_be_watched_is_ended(
    sleeper: subprocess.Popen[bytes], fork: Callable[[Path], object], tmp_path: Path
) -> None:
    try:
        with pytest.raises(OSError, match="Too many open files"):
            fork(tmp_path)
        assert processes.look(sleeper.pid) is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_service_that_cannot_be_watched_is_ended_and_counts_as_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def refuse(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    service = Service(name="trainer", argv=["sleep", "60"], env={}, log_path=tmp_path / "trainer.log", grace_s=1)
    with pytest.raises(OSError, match="Too many open files"):
        service.start()
    assert (service.process, service.ended()) == (None, None)
    assert processes.look(pids[0]) is None


def test_what_is_to_sleep_for_a_while_wakes_also_where_that_is_cut_short() -> None:
    class Interrupted(list[int]):
        """Pids of which the first is told, and then Ctrl-C comes, once."""

        came = False

        def __iter__(self):  # type: ignore[no-untyped-def]  # as a list's
            yield self[0]
            if not self.came:
                self.came = True
                raise KeyboardInterrupt

    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(KeyboardInterrupt), frozen(Interrupted([process.pid])):
                pytest.fail("it was cut short")

            def goes_on() -> bool:
                found = processes.look(process.pid)
                return found is not None and found.state == "S"

            wait_until(goes_on, LIMIT_S, "it sleeps for ever")
        finally:
            process.kill()
