"""Signs of life on the disk, where the disk does not take them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trackside import processes
from trackside.config import Settings
from trackside_trainer import slotfiles
from trackside_trainer.agent import Agent
from trackside_trainer.places import WorkerHandle
from worker_parts import SLOT, URL


def test_a_sign_that_the_disk_does_not_take_ends_nobody(tmp_path: Path) -> None:
    lock = slotfiles.slot_lock(tmp_path, "box-cpu0")
    assert lock.take()
    assert lock.fd is not None
    os.close(lock.fd)  # every use of it is an error of the system from here on
    lock.touch()


def test_a_worker_without_signs_is_killed_only_where_there_could_be_some(tmp_path: Path) -> None:
    agent = Agent(Settings(home=tmp_path, stop_grace_s=1), [SLOT], URL, "box", "s1")
    with subprocess.Popen(["sleep", "60"]) as worker:
        pidfd = os.pidfd_open(worker.pid)
        started = processes.start_time(worker.pid) or 0
        handle = WorkerHandle(pid=worker.pid, started=started, pidfd=pidfd, ours=True)
        agent._places[SLOT.id].worker = handle
        for _ in range(200):  # no file of the agent's is there to be touched
            agent._end_hung()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(0.3)

        lock = slotfiles.agent_lock(tmp_path)
        assert lock.take()
        for _ in range(200):
            agent._end_hung()
        assert worker.wait(10) == -9
        lock.release()
        os.close(pidfd)
