"""A run whose loss becomes NaN goes back to before that, by itself, and not for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server_harness import short_home
from system import System, running_system
from trackside.cli.throwaway import QUICK
from trackside.models import EventKind, JobState, Reason

UNHURRIED = {**QUICK, "beat_ttl_s": "10"}  # a busy machine makes nobody silent: each attempt is counted here
TRAIN = """
import sys, time, torch, trackside
run = trackside.init()
state = run.checkpointer(model=torch.nn.Linear(1, 1), every=10, background=False)  # none is left out on a slow disk
for step in run.steps(80):
    bad = 45 <= step and (run.attempt == 1 or sys.argv[1] == "always")
    run.log(loss=float("nan") if bad else 1.0 / step)
    time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with short_home() as home, running_system(home, "--no-dashboard", "--slots", "cpu:2", **UNHURRIED) as system:
        (home / "project").mkdir()  # the folder of a script is sent along, and the home is none to send
        (home / "project" / "train.py").write_text(TRAIN)
        yield system


def rules(system: System, job_id: str) -> list[str | None]:
    events = system.events(job_id)
    return [e.cause for e in events if e.kind is EventKind.TRANSITION and e.old is JobState.RUNNING]


def test_a_run_that_diverged_by_chance_goes_back_and_succeeds(system: System) -> None:
    job_id = system.submit(system.home / "project" / "train.py", args=("once",))
    job = system.ended(job_id)

    assert (job.state, job.rollbacks, job.bad_step) == (JobState.SUCCEEDED, 1, 45)
    first, second = system.attempts(job_id)
    assert first.outcome is not None
    assert (first.outcome.reason, first.outcome.bad_step) == (Reason.DIVERGED, 45)
    assert first.outcome.last_step == 47
    assert (second.resumed_step, second.total_steps) == (40, 80)
    assert rules(system, job_id) == ["rolled back", "succeeded"]
    series = system.series(job_id, "loss")
    assert sorted(series) == list(range(1, 81))
    assert series[45] == 1.0 / 45


def test_one_that_always_does_is_given_up_and_its_nan_is_shown(system: System) -> None:
    job_id = system.submit(system.home / "project" / "train.py", args=("always",))
    job = system.ended(job_id)

    assert (job.state, job.reason, job.attempt) == (JobState.FAILED, Reason.DIVERGED, 4)
    assert rules(system, job_id) == ["rolled back"] * 3 + ["diverged"]
    assert [attempt.resumed_step for attempt in system.attempts(job_id)] == [None, 40, 30, 40]
    assert "first at step 45" in (job.detail or "")
    assert system.series(job_id, "loss")[45] == "NaN"
    shown = system.cli("show", job_id)
    assert "Failure of attempt 4\nDiverged: loss was NaN at 3 logged steps in a row, first at step 45" in shown


def test_show_has_the_evidence_of_a_crash(system: System) -> None:
    script = system.home / "project" / "crash.py"
    script.write_text("import ctypes\nprint('so far so good')\nctypes.string_at(0)\n")
    job_id = system.submit(script, "--retries", "0")
    assert system.ended(job_id).reason is Reason.KILLED

    shown = system.cli("show", job_id)
    assert "Evidence of attempt 1\nFatal Python error: Segmentation fault" in shown
    assert 'crash.py", line 3' in shown
    assert "last output:\nso far so good" in shown
