"""What a training script sees of its run, inside of a job and outside of one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trackside
from sdk_runs import MakeRun, Slow, page_of, records
from trackside.errors import NotInJob
from trackside.sdk.page import Phase
from trackside.sdk.run import set_current


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, True),
        (math.nan, "NaN"),
        (math.inf, "Infinity"),
        (-math.inf, "-Infinity"),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(True), True),
        (torch.tensor(math.nan), "NaN"),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(0.5), 0.5),
        (Fraction(1, 2), 0.5),
        (2**63, 2.0**63),
        (10**400, "Infinity"),
        (Fraction(10**400), "Infinity"),
        (Decimal("0.5"), 0.5),
        (Decimal("NaN"), "NaN"),
        (np.longdouble(0.5), 0.5),
        (np.ma.array([0.5], mask=[True]).mean(), "NaN"),
        (np.ma.array(0.5, mask=True), "NaN"),
        (np.ma.array(0.5, mask=False), 0.5),
    ],
)
def test_every_kind_of_number_can_be_logged(make_run: MakeRun, value: Any, written: Any) -> None:
    run = make_run()
    run.log(x=value)
    (found,) = records(run, "m")
    assert found["m"] == {"x": written}
    assert type(found["m"]["x"]) is type(written)


@pytest.mark.parametrize(
    "value",
    [
        "0.5",
        b"1",
        None,
        [1],
        {"a": 1},
        torch.zeros(1),
        torch.zeros(2, 2),
        np.zeros(3),
        1j,
        torch.tensor(1j),
        np.str_("a"),
    ],
)
def test_what_is_no_number_is_refused_by_its_key(make_run: MakeRun, value: Any) -> None:
    run = make_run()
    with pytest.raises(TypeError, match="accuracy="):
        run.log(loss=1.0, accuracy=value)
    assert records(run, "m") == []


def test_a_metric_belongs_to_the_present_step_unless_told_otherwise(make_run: MakeRun) -> None:
    run = make_run()
    run.log(a=0)
    for step in run.steps(2):
        run.log(a=step)
        run.log(step=50, b=1)
    trackside.log(c=1)
    assert [(r["s"], r["m"]) for r in records(run, "m")] == [
        (0, {"a": 0}),
        (1, {"a": 1}),
        (50, {"b": 1}),
        (2, {"a": 2}),
        (50, {"b": 1}),
        (2, {"c": 1}),
    ]


def test_numbers_on_their_way_are_written_in_order_and_never_waited_for(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackside.sdk.run.Arriving", Slow)
    monkeypatch.setattr("trackside.sdk.run.number", lambda key, value: value)
    run, first, last = make_run(), Slow(1.0), Slow(3.0)
    run.log(a=first)
    run.log(a=2.0)
    run.log(a=last)
    assert records(run, "m") == []
    first.arrived = True
    run.log(a=4.0)
    assert [r["m"]["a"] for r in records(run, "m")] == [1.0, 2.0]
    run.flush()
    assert [r["m"]["a"] for r in records(run, "m")] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("step", [2**53 + 1, -(2**53) - 1])
def test_a_step_that_no_reader_can_hold_is_refused(make_run: MakeRun, step: int) -> None:
    run = make_run()
    with pytest.raises(ValueError, match="count in larger units"):
        run.log(step=step, loss=0.5)
    with pytest.raises(ValueError, match="count in larger units"):
        run.steps(abs(step))
    run.log(step=2**53, loss=0.5)
    assert [record["s"] for record in records(run, "m")] == [2**53]


def test_a_child_that_the_script_forks_leaves_its_parents_numbers_to_its_parent(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackside.sdk.run.Arriving", Slow)
    monkeypatch.setattr("trackside.sdk.run.number", lambda key, value: value)
    run, late = make_run(), Slow(1.0)
    set_current(run)
    run.log(a=late)
    late.arrived = True
    pid = os.fork()
    if pid == 0:
        run.log(a=2.0)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    run.log(a=3.0)
    set_current(None)
    assert [record["m"]["a"] for record in records(run, "m")] == [2.0, 1.0, 3.0]


def test_what_is_saved_after_a_loop_was_left_inside_of_a_step_says_which_step_is_done_again(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    for step in run.steps(10):
        if step == 7:
            break
    state.save()
    (note,) = [record["text"] for record in records(run, "note")]
    assert note.startswith("the step loop was left inside of step 7: a checkpoint that is saved now counts 6 steps")
    assert [record["s"] for record in records(run, "ck")] == [6]


def test_a_save_that_was_asked_for_within_the_step_that_the_loop_was_left_in_is_told_to_be_missing(
    make_run: MakeRun,
) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    for step in run.steps(10):
        if step == 7:
            state.save()
            break
    (note,) = [record["text"] for record in records(run, "note")]
    assert note.startswith("the step loop was left inside of step 7, at whose end a checkpoint was to be saved")
    assert records(run, "ck") == []


def test_steps_tell_their_progress_on_the_page(make_run: MakeRun) -> None:
    run = make_run()
    page = page_of(run)
    seen = [(step, page.completed, page.phase, page.first, page.total) for step in run.steps(3)]
    assert seen == [(1, 0, Phase.STEPPING, 1, 3), (2, 1, Phase.STEPPING, 1, 3), (3, 2, Phase.STEPPING, 1, 3)]
    assert page.completed == 3
    assert page.phase is Phase.STARTING


def test_the_summary_is_written_as_it_is_set(make_run: MakeRun) -> None:
    run = make_run()
    run.summary["accuracy"] = torch.tensor(0.5)
    run.summary["why"] = "good"
    assert [r["m"] for r in records(run, "summary")] == [{"accuracy": 0.5}, {"why": "good"}]
    assert dict(run.summary) == {"accuracy": 0.5, "why": "good"}
    with pytest.raises(TypeError, match="weights="):
        run.summary["weights"] = [1, 2]


def test_in_a_job_init_gives_the_attempt_in_every_thread(make_run: MakeRun) -> None:
    run = make_run()
    found = []
    thread = threading.Thread(target=lambda: found.append(trackside.current_run()))
    thread.start()
    thread.join()
    assert trackside.init(params={"lr": 9}) is run is found[0]
    assert (run.id, run.attempt, run.name, dict(run.params)) == ("digits-1", 1, "digits", {"lr": 0.1})
    assert run.dir.is_dir()
    with pytest.raises(TypeError):
        run.params["lr"] = 1  # type: ignore[index]


def test_outside_of_a_run_logging_says_what_to_do() -> None:
    with pytest.raises(NotInJob, match=r"trackside\.init\(\)"):
        trackside.log(loss=1)
    with pytest.raises(NotInJob):
        trackside.current_run()


LOCAL = """
import torch, trackside
run = trackside.init(params={"lr": 0.5})
state = run.checkpointer(model=torch.nn.Linear(1, 1), every=10, background=False)  # none is left out on a slow disk
for step in run.steps(60):
    run.log(loss=torch.tensor(1 / step), lr=run.params["lr"])
    if step == 25 and state.step == 0:
        raise SystemExit(3)
run.summary["done"] = True
"""


def test_the_same_script_runs_and_resumes_by_itself(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LOCAL)

    def go() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True)

    first, second, third = go(), go(), go()
    assert (first.returncode, second.returncode, third.returncode) == (3, 0, 0), second.stderr
    assert first.stdout.splitlines()[-1] == "step 25/60  loss 0.04  lr 0.5"
    lines = second.stdout.splitlines()
    assert lines[0].startswith("resumed after step 20: remove .trackside/train")
    assert lines[-2:] == ["step 60/60  loss 0.0166667  lr 0.5", "done = True"]
    assert len(lines) < 10
    assert "all 60 steps are done" in third.stdout
