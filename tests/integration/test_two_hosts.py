"""A host falls silent in mid-run: the job goes on elsewhere from its checkpoint, and the silent one can spoil nothing.

Two trainers of two host names share one folder of checkpoints, as hosts with a network file system do. "Silent" is
SIGSTOP of the first one's agent, worker and training process, all at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from system import TRAIN, System, running_system
from trackside import launcher
from trackside.bus import beats
from trackside.bus.client import without_password
from trackside.models import JobState, Reason, Role
from trackside.processes import descendants, look
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
STEPS = 600


@contextmanager
def another_host(system: System, home: Path, name: str) -> Iterator[None]:
    """A trainer of another host, on the same bus and the same data folder."""
    url = without_password(launcher.client_url(system.settings, "trainer"))
    env = {**system.env, "TRACKSIDE_HOME": str(home), "TRACKSIDE_HOST": name, "TRACKSIDE_REDIS_URL": url}
    env["TRACKSIDE_REDIS_PASSWORD_FILE"] = str(system.home / "secrets" / "trainer")
    command = [sys.executable, "-m", "trackside", "trainer", "--slots", "cpu:1"]
    with (system.home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        member = f"{Role.WORKER}:{name}-cpu0"
        wait_until(lambda: beats.read(system.client).get(member), 40.0, f"{name} has no worker")
        yield
    finally:
        process.terminate()
        process.wait(60)


def silence(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, signum)


def test_a_job_leaves_a_silent_host_and_the_silent_host_spoils_nothing(fresh_home: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    settings = {"host": "alpha", "data": str(tmp_path / "data"), "backoff_first_s": "0.2"}
    with running_system(fresh_home, "--slots", "cpu:1", "--no-dashboard", **settings) as system:
        args = ("--steps", str(STEPS), "--every", "20")
        calm = system.submit(script, args=(*args, "--step-ms", "1"))
        assert system.ended(calm).state is JobState.SUCCEEDED

        job_id = system.submit(script, args=args)
        first = system.stepping(job_id, 70)
        with another_host(system, tmp_path / "beta", "beta"):
            agent = system.beat(Role.AGENT, None)
            assert first.attempt_pid is not None
            alpha = [beat.pid for beat in beats.read(system.client).values() if beat and beat.host == "alpha"]
            alpha = [pid for pid in alpha if pid in descendants(system.process.pid)]
            trainer = [pid for pid in alpha if _is_trainer(pid)]
            stopped = [*trainer, first.attempt_pid]
            assert agent is not None
            assert len(trainer) == 2, "agent and worker"
            silence(stopped, signal.SIGSTOP)
            try:
                second = wait_until(
                    lambda: system.job(job_id).attempt > 1 and system.beat(Role.WORKER, job_id), 30.0, "not moved"
                )
                assert second
                assert second.host == "beta"
            finally:
                silence(stopped, signal.SIGCONT)
            wait_until(lambda: _gone(first.attempt_pid), 5.0, "the fenced training process goes on")
            job = system.ended(job_id)

        assert job.state is JobState.SUCCEEDED
        outcomes = [attempt.outcome for attempt in system.attempts(job_id)]
        assert [outcome.reason for outcome in outcomes if outcome] == [Reason.LOST, Reason.SUCCEEDED]
        assert system.series(job_id, "loss") == system.series(calm, "loss")
        assert system.summary(job_id)["digest"] == system.summary(calm)["digest"]
        assert {checkpoint.attempt for checkpoint in job.checkpoints if checkpoint.step > 300} == {2}


def _is_trainer(pid: int) -> bool:
    return b"trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _gone(pid: int | None) -> bool:
    found = look(pid or 0)
    return found is None or found.state in "ZX"
