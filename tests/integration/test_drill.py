"""`trackside drill`: a user's own script under faults, the table, the JSON, and the exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from system import TRAIN
from trackside.cli.drill import COLUMNS
from trackside.cli.faults import FAULTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
ARGS = ("--steps", "200", "--step-ms", "8", "--every", "20")
# Its checkpoints are larger than whatever else it writes, so a disk can be full for them alone.
WIDE = TRAIN.replace("Linear(8, 16)", "Linear(8, 4096)").replace("Linear(16, 1)", "Linear(4096, 1)")
# It draws from a generator that no checkpoint has.
FORGETFUL = TRAIN.replace("run = trackside.init()", "run = trackside.init()\nown = torch.Generator().manual_seed(3)")
FORGETFUL = FORGETFUL.replace("torch.randn(32, 8)", "torch.randn(32, 8, generator=own)")
PLAIN = "import time\n\ntime.sleep(2)\nprint('finished')\n"


def drill(*words: str, timeout_s: float = 170.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trackside", "drill", *words]
    # A drill that finds something leaves its home for looking around; sockets in it need a short path.
    with tempfile.TemporaryDirectory(prefix="ts-", ignore_cleanup_errors=True) as folder:
        env = {**os.environ, "COLUMNS": "40", "TMPDIR": folder}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=env)


def written(folder: Path, text: str) -> str:
    """A script of that text."""
    path = folder / "train.py"
    path.write_text(text)
    return str(path)


def by_id(report: Path) -> dict[str, dict[str, Any]]:
    """The JSON's faults."""
    return {fault["fault"]: fault for fault in json.loads(report.read_text())["faults"]}


def test_a_killed_training_is_drilled_and_its_cost_told(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    answer = drill("--faults", "F01", "--seed", "3", "--json", str(report), written(tmp_path, TRAIN), "--", *ARGS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Seed 3" in answer.stdout
    assert "training killed" in answer.stdout
    assert [*COLUMNS] in [re.split(r"  +", line.strip()) for line in answer.stdout.splitlines()], "as wide as it needs"
    assert "; 1 fault; " in answer.stdout
    found = json.loads(report.read_text())
    (fault,) = found["faults"]
    assert (found["seed"], found["held"], found["error"]) == (3, True, None)
    assert fault["reasons"] == ["killed", "succeeded"]
    assert (fault["lost"], fault["doubled"], fault["held"]) == (0, 0, True)
    assert fault["redone"] >= 0
    assert 0 < fault["noticed_s"] < fault["stepping_s"]


def test_a_hang_and_a_full_disk_need_nothing_of_the_script(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    answer = drill("--faults", "F08a,F37a", "--seed", "3", "--json", str(report), written(tmp_path, WIDE), "--", *ARGS)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    faults = by_id(report)
    assert [fault["not_applicable"] for fault in faults.values()] == [None, None]
    assert faults["F08a"]["reasons"] == ["stalled", "succeeded"]
    assert faults["F08a"]["noticed_s"] > json.loads(report.read_text())["undisturbed"]["hang_s"]
    assert faults["F37a"]["reasons"] == ["succeeded"]


def test_a_script_whose_result_depends_on_its_attempts_fails_the_drill(tmp_path: Path) -> None:
    report, script = tmp_path / "report.json", written(tmp_path, TRAIN + '\nrun.summary["attempts"] = run.attempt\n')
    answer = drill("--faults", "F01", "--seed", "3", "--json", str(report), script, "--", *ARGS)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert [line.split()[0] for line in by_id(report)["F01"]["violations"]] == ["I8"]


def test_a_script_that_does_not_save_all_of_its_state_fails_when_it_is_paused(tmp_path: Path) -> None:
    report, script = tmp_path / "report.json", written(tmp_path, FORGETFUL)
    answer = drill("--faults", "F16,C2", "--seed", "3", "--json", str(report), script, "--", *ARGS)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    faults = by_id(report)
    assert faults["F16"]["held"]
    assert {line.split()[0] for line in faults["C2"]["violations"]} == {"I5", "I8"}
    assert "broken: I5, I8" in answer.stdout


def test_what_a_script_cannot_show_is_not_applicable_and_no_failure(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    faults = "F01,F05,F08a,F13,F14,F37a,F38,C2"
    options = ("--seed", "3", "--slots", "cpu:1", "--json", str(report))
    answer = drill("--faults", faults, *options, written(tmp_path, PLAIN))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    why = {fault["fault"]: fault["not_applicable"] for fault in by_id(report).values()}
    assert why.pop("F01") is None
    assert why.pop("F05") == "it needs two slots"
    assert why.pop("F08a") == "it counts no steps"
    assert set(why.values()) == {"it saves no checkpoint"}
    assert "n/a" in answer.stdout
    assert by_id(report)["F01"]["redone"] is None  # nobody counts its steps


def test_a_script_that_takes_too_long_is_an_error_in_words_and_in_the_json(tmp_path: Path) -> None:
    report, script = tmp_path / "report.json", written(tmp_path, "import time\n\ntime.sleep(600)\n")
    answer = drill("--faults", "F01", "--limit", "2s", "--json", str(report), script)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    found = json.loads(report.read_text())
    assert "give fewer steps, or a longer --limit" in found["error"]
    assert found["error"] in answer.stderr
    assert (found["held"], found["faults"]) == (False, [])


@pytest.mark.chaos
@pytest.mark.timeout(400)
def test_the_quick_set_holds_on_the_example(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    answer = drill("--json", str(report), timeout_s=380.0)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    header, *rows = answer.stdout[answer.stdout.index("What each fault cost") :].splitlines()[2:]
    assert header.split() == " ".join(COLUMNS).split()
    quick = [fault for fault in FAULTS if fault.quick]
    assert len(quick) > 10
    for fault in quick:
        (row,) = [row for row in rows if row.split()[:1] == [fault.id]]
        assert row.split()[-3:] == ["0", "0", "held"]
    found = by_id(report)
    assert list(found) == [fault.id for fault in quick]
    assert all(fault["held"] and fault["not_applicable"] is None for fault in found.values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--faults", "F99"), "no fault 'F99'"),
        (("nothing.py",), "no script"),
        (("--slots", "three"), "--slots is 'three'"),
        (("--limit", "soon"), "--limit is 'soon'"),
        (("--json", "no-such-folder/report.json"), "there is no such folder"),
    ],
)
def test_what_cannot_be_drilled_is_refused_before_anything_starts(words: tuple[str, ...], says: str) -> None:
    answer = drill(*words)
    assert answer.returncode == 2
    assert says in answer.stderr
