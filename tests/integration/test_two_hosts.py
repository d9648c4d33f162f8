"""A host falls silent in mid-run: the job goes on elsewhere from its checkpoint, and the silent one can spoil nothing.

Two trainers of two host names share one folder of checkpoints, as hosts with a network file system do. "Silent" is
SIGSTOP of the first one's agent, worker and training process, all at once.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from system import TRAIN, another_host, host_pids, running_system, send
from trackside.models import JobState, Reason, Role
from trackside.testing import wait_until
from trainer_harness import lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
STEPS = 300


def test_a_job_leaves_a_silent_host_and_the_silent_host_spoils_nothing(fresh_home: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    settings = {"host": "alpha", "data": str(tmp_path / "data"), "backoff_first_s": "0.2"}
    with (
        running_system(fresh_home, "--slots", "cpu:1", "--no-dashboard", **settings) as system,
        another_host(system, tmp_path / "beta", "beta"),
    ):
        system.store.cordon("beta-cpu0", cordoned=True)  # until the job has taken the slot of the other host
        args = ("--steps", str(STEPS), "--every", "20")
        calm = system.submit(script, args=(*args, "--step-ms", "0"))
        assert system.ended(calm).state is JobState.SUCCEEDED

        job_id = system.submit(script, args=(*args, "--step-ms", "25"))
        first = system.stepping(job_id, 70)
        stopped = host_pids(system, "alpha")
        assert first.attempt_pid in stopped
        assert len(stopped) == 3, "agent, worker, training process"
        send(stopped, signal.SIGSTOP)
        try:
            system.store.cordon("beta-cpu0", cordoned=False)
            second = wait_until(
                lambda: system.job(job_id).attempt > 1 and system.beat(Role.WORKER, job_id), 60.0, "not moved"
            )
            assert second
            assert second.host == "beta"
        finally:
            send(stopped, signal.SIGCONT)
        zombie = first.attempt_pid
        wait_until(lambda: not lives(zombie), 20.0, "the fenced training process goes on")
        job = system.ended(job_id)

        assert job.state is JobState.SUCCEEDED
        outcomes = [attempt.outcome for attempt in system.attempts(job_id)]
        assert [outcome.reason for outcome in outcomes if outcome] == [Reason.LOST, Reason.SUCCEEDED]
        assert outcomes[0] is not None
        assert outcomes[0].rule == "silent host"
        assert system.series(job_id, "loss") == system.series(calm, "loss")
        assert system.summary(job_id)["digest"] == system.summary(calm)["digest"]
        assert {checkpoint.attempt for checkpoint in job.checkpoints if checkpoint.step > STEPS // 2} == {2}
