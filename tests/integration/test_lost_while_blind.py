"""Blind is not dead, and dead is not forgotten: a host dies for good while nobody can see, another one goes on.

Two trainers of two host names share one folder of checkpoints. "Dead for good" is SIGSTOP of the first one's agent,
worker and training process, which nobody starts again. It is seen after the server is back, within the stated time.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

import pytest

from system import TRAIN, System, another_host, host_pids, running_system, send
from trackside.bus import beats
from trackside.cli.throwaway import QUICK
from trackside.errors import BusUnavailable
from trackside.models import JobState, Reason, Role
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
STEPS: Final = 320
STEP_MS: Final = 25
# On top of the stated time: for the supervisor to find the server again, and since that time begins anew whenever a
# busy machine or disk halts it for half a TTL.
BUSY_S: Final = 15.0


def answers(system: System) -> bool:
    try:
        beats.read(system.client)
    except BusUnavailable:
        return False
    return True


def host_of(system: System, job_id: str) -> str | None:
    beat = system.beat(Role.WORKER, job_id)
    return None if beat is None else beat.host


def test_what_died_while_the_server_was_away_is_found_and_what_lives_is_left_alone(
    fresh_home: Path, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    settings = {**QUICK, "host": "alpha", "data": str(tmp_path / "data")}
    with (
        running_system(fresh_home, "--slots", "cpu:1", "--no-dashboard", **settings) as system,
        another_host(system, tmp_path / "beta", "beta"),
    ):
        jobs = [
            system.submit(script, args=("--steps", str(STEPS), "--step-ms", str(STEP_MS), "--every", "20"))
            for _ in range(2)
        ]
        for job_id in jobs:
            system.stepping(job_id, 40)
        dying = next(job_id for job_id in jobs if host_of(system, job_id) == "alpha")
        living = next(job_id for job_id in jobs if host_of(system, job_id) == "beta")
        stopped = host_pids(system, "alpha")
        up = system.beat(Role.LAUNCHER)
        assert up is not None
        ttl_s, margin_s = system.settings.beat_ttl_s, system.settings.silent_margin_s
        try:
            os.kill(up.pid, signal.SIGSTOP)
            os.kill(up.children["redis"], signal.SIGKILL)
            send(stopped, signal.SIGSTOP)
            blind_s = time.monotonic()
            wait_until(lambda: time.monotonic() - blind_s > 2 * ttl_s + margin_s, 30.0, "time stands still")
            os.kill(up.pid, signal.SIGCONT)
            wait_until(lambda: answers(system), 30.0, "the server did not come back")
            seen_s = time.monotonic()
            stated_s = 2 * ttl_s + margin_s
            wait_until(
                lambda: system.attempts(dying)[0].outcome, stated_s + BUSY_S, "nobody noticed that the host had died"
            )
            noticed_s = time.monotonic() - seen_s
            assert noticed_s > ttl_s, "silence was judged before everybody could be heard out"
            assert system.job(living).attempt == 1
            assert system.ended(living).state is JobState.SUCCEEDED
            job = system.ended(dying)
        finally:
            os.kill(up.pid, signal.SIGCONT)
            send(stopped, signal.SIGCONT)

        assert job.state is JobState.SUCCEEDED
        outcomes = [attempt.outcome.reason for attempt in system.attempts(dying) if attempt.outcome]
        assert outcomes == [Reason.LOST, Reason.SUCCEEDED]
        assert [attempt.number for attempt in system.attempts(living)] == [1]
        assert list(system.series(dying, "loss")) == list(range(1, STEPS + 1))
        assert system.series(dying, "loss") == system.series(living, "loss")
        print(f"lost {noticed_s:.1f} s after the server was back; {stated_s:.1f} s are stated")
