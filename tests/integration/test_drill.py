"""`trackside drill`: a user's own script under a fault, the table, the JSON, and the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from system import TRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
ARGS = ("--steps", "200", "--step-ms", "8", "--every", "20")


def drill(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trackside", "drill", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, "COLUMNS": "120"})


def test_a_killed_training_is_drilled_and_its_cost_told(tmp_path: Path) -> None:
    script, report = tmp_path / "train.py", tmp_path / "report.json"
    script.write_text(TRAIN)
    answer = drill("--faults", "F01", "--seed", "3", "--json", str(report), str(script), "--", *ARGS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Seed 3" in answer.stdout
    assert "training killed" in answer.stdout
    found = json.loads(report.read_text())
    (fault,) = found["faults"]
    assert found["seed"] == 3
    assert fault["reasons"] == ["killed", "succeeded"]
    assert (fault["lost"], fault["doubled"], fault["held"]) == (0, 0, True)
    assert 0 <= fault["redone"] <= 20
    assert 0 < fault["noticed_s"] < fault["stepping_s"]


def test_a_script_whose_result_depends_on_its_attempts_fails_the_drill(tmp_path: Path) -> None:
    script, report = tmp_path / "train.py", tmp_path / "report.json"
    script.write_text(TRAIN + '\nrun.summary["attempts"] = run.attempt\n')
    answer = drill("--faults", "F01", "--seed", "3", "--json", str(report), str(script), "--", *ARGS)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    (fault,) = json.loads(report.read_text())["faults"]
    assert [line.split()[0] for line in fault["violations"]] == ["I8"]


@pytest.mark.parametrize(("words", "says"), [(("--faults", "F99"), "no fault 'F99'"), (("nothing.py",), "no script")])
def test_what_cannot_be_drilled_is_refused_before_anything_starts(words: tuple[str, ...], says: str) -> None:
    answer = drill(*words)
    assert answer.returncode == 2
    assert says in answer.stderr
