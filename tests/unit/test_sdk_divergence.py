"""A run whose loss is no number any more stops, says where that began, and saves nothing of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import trackside
from sdk_runs import MakeRun, records
from trackside.errors import Diverged
from trackside.sdk import outcome
from trackside.sdk.divergence import Watch
from trackside.sdk.page import Command, ControlPage
from trackside.sdk.run import Run

NAN = "NaN"


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    return make_run()


def train(run: Run, loss_of: Callable[[int], Any], total: int = 20) -> None:
    for step in run.steps(total):
        run.log(loss=loss_of(step), lr=math.inf)


def test_three_bad_steps_in_a_row_stop_the_run_and_stay_visible(run: Run) -> None:
    with pytest.raises(Diverged) as raised:
        train(run, lambda step: math.nan if step >= 7 else 0.5)
    assert raised.value.steps == (7, 8, 9)
    assert str(raised.value).startswith("loss was NaN at 3 logged steps in a row, first at step 7: ")
    assert [record["m"]["loss"] for record in records(run, "m")] == [0.5] * 6 + [NAN] * 3

    ended = outcome.of_exception(raised.value)
    assert (ended.name, ended.exit_code, ended.bad_step) == ("diverged", 1, 7)


def test_two_are_not_enough_and_a_good_one_starts_the_count_anew(run: Run) -> None:
    train(run, lambda step: torch.tensor(math.inf if step % 3 else 1.0))


@pytest.mark.parametrize("names", [(), ("accuracy",)])
def test_what_is_not_watched_may_be_what_it_likes(run: Run, names: tuple[str, ...]) -> None:
    trackside.init(watch=names)
    train(run, lambda step: math.nan)


def test_another_metric_can_be_watched(run: Run) -> None:
    trackside.init(watch=("lr",))
    with pytest.raises(Diverged, match="lr was Infinity"):
        train(run, lambda step: 1.0)


def test_names_are_asked_for_and_not_a_name(run: Run) -> None:
    with pytest.raises(TypeError, match=r"watch=\('loss',\)"):
        trackside.init(watch="loss")


def test_nothing_is_saved_from_the_first_bad_step_on(run: Run) -> None:
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    with pytest.raises(Diverged):
        train(run, lambda step: math.nan if step >= 7 else 0.5)
    assert [record["s"] for record in records(run, "ck")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_due_at_a_bad_step_is_made_up_for_at_the_next_good_one(run: Run) -> None:
    run.checkpointer(model=torch.nn.Linear(1, 1), every=5)
    train(run, lambda step: math.nan if step in (5, 6) else 0.5, total=12)
    assert [record["s"] for record in records(run, "ck")] == [7, 10, 12]


def test_a_pause_saves_whatever_the_state(run: Run) -> None:
    run.checkpointer(model=torch.nn.Linear(1, 1), every=100)
    page = ControlPage.open(run.dir.parent / "page")

    def loss_of(step: int) -> float:
        if step == 4:
            page.command = Command.PAUSE
        return math.nan if step == 4 else 1.0

    with pytest.raises(trackside.errors.StopRequested, match="paused"):
        train(run, loss_of)
    assert [record["s"] for record in records(run, "ck")] == [4]


def test_a_metric_that_is_logged_no_more_keeps_no_checkpoint_back() -> None:
    watch = Watch()
    for step in (10, 20):
        watch.see(step, {"loss": 1.0})
    watch.see(30, {"loss": NAN})
    assert watch.suspects(30)
    assert watch.suspects(40)
    assert not watch.suspects(41)


def test_one_step_that_is_logged_three_times_counts_once() -> None:
    watch = Watch()
    for _ in range(3):
        watch.see(5, {"loss": NAN})
    assert watch.verdict is None
