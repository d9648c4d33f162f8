"""Whatever moment a SIGKILL comes at, a job ends with the very state and losses of one that ran undisturbed.

The whole final state (parts, `extra`, random generators) and the series are compared by SHA-256, for three models,
each without loader workers, with two, and with a number that changes at each resume. The red controls leave one part
out of what a resume restores: each must show. `make kill-points` tries fifty kills for each; here there are few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POINTS = os.environ.get("TRACKSIDE_KILL_POINTS", "4")
SEED = os.environ.get("TRACKSIDE_KILL_SEED", "1")
MODELS = ("mlp", "cnn", "transformer")
PARTS = {
    "average",
    "extra",
    "model",
    "noise",
    "optimizer",
    "position",
    "rng.numpy",
    "rng.python",
    "rng.torch_cpu",
    "scaler",
    "schedule",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `python -m kill_points` found."""
    path = tmp_path_factory.mktemp("points") / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "kill_points", "--points", POINTS, "--seed", SEED, "--json", str(path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=590,
    )
    print(done.stdout)
    assert path.is_file(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("workers", ["0", "2", "0/2"])
@pytest.mark.parametrize("model", MODELS)
def test_a_job_killed_at_chance_moments_ends_bit_for_bit_the_same(
    report: dict[str, Any], model: str, workers: str
) -> None:
    (row,) = [row for row in report["rows"] if (row["model"], row["workers"]) == (model, workers)]
    assert row["unequal"] == [], f"seed {report['seed']}"
    assert row["equal"] == row["kills"] == int(POINTS)


@pytest.mark.parametrize("part", sorted(PARTS))
def test_what_is_left_out_of_a_resume_shows(report: dict[str, Any], part: str) -> None:
    assert report["controls"][part], f"nothing differs without {part}"


def test_the_controls_leave_out_each_part_that_a_checkpoint_holds(report: dict[str, Any]) -> None:
    assert set(report["controls"]) == PARTS
