"""A rehearsal sees more than the job that it harms: what is done to others, and who is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from trackside.cli.faults import Fault
from trackside.cli.rehearse import Baseline, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.models import Reason, Role
from trackside.sdk.context import ENVIRONMENT

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(150)]


def test_who_harms_a_bystander_or_leaves_a_process_behind_breaks_promises(
    system: Throwaway, script: Path, undisturbed: Baseline, rng: random.Random
) -> None:
    def kill_all_and_leave_one(scene: Scene) -> Harm:
        harm = Harm(at_ms=now_ms())
        context = system.home / "jobs" / scene.job / "attempts" / "1" / "attempt.json"
        left = subprocess.Popen(["sleep", "60"], cwd="/", env={ENVIRONMENT: str(context), "PATH": os.defpath})
        scene.stack.callback(left.wait)
        scene.stack.callback(left.kill)
        for beat in system.beats(Role.WORKER):
            if beat.attempt_pid is not None:
                os.kill(beat.attempt_pid, signal.SIGKILL)
        return harm

    fault = Fault(
        id="X", name="all trainings killed", inject=kill_all_and_leave_one, reasons=(frozenset({Reason.KILLED}),),
        bystander=True,
    )  # fmt: skip
    slow = ("--step-ms", "30")  # what is left behind is there for more than two seconds
    result = rehearse(system, fault, lambda: system.submit(script, *slow), undisturbed, rng)
    assert result.error is None
    assert {violation.rule for violation in result.violations} == {
        "I4 no more attempts than due",
        "I11 no process outlives its attempt",
        "I13 a bystander keeps its attempt and state",
        "I19 nothing that was not due",
    }
    assert all(violation.job != result.job for violation in result.violations)
