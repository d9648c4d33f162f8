"""How a run stops: at a boundary, with what it did saved, or not at all where that would lose something."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdk_runs import MakeRun, Slow, page_of, records
from trackside.errors import StopRequested
from trackside.sdk.page import Command
from trackside.sdk.run import Run


def train(run: Run, at: int, then: Callable[[], None]) -> None:
    for step in run.steps(10):
        if step == at:
            then()


@pytest.mark.parametrize("command", [Command.PREEMPT, Command.PAUSE])
def test_a_stop_saves_first_and_the_next_attempt_loses_no_step(make_run: MakeRun, command: Command) -> None:
    model = torch.nn.Linear(1, 1)
    run = make_run()
    run.checkpointer(model=model, every=100)
    with pytest.raises(StopRequested, match=command.reason):
        train(run, 4, lambda: setattr(page_of(run), "command", command))
    second = make_run(attempt=2)
    state = second.checkpointer(model=model)

    assert [r["name"] for r in records(run, "ck")] == ["step-00000004-a1"]
    assert state.step == 4
    assert next(iter(second.steps(10))) == 5


def test_a_pause_whose_checkpoint_is_told_to_nobody_is_refused(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    page = page_of(run)

    def pause() -> None:
        with Path("/dev/full").open("wb") as full:
            os.dup2(full.fileno(), run._sink._fd)  # type: ignore[attr-defined]  # the journal's, whose disk is full now
        page.command = Command.PAUSE

    train(run, 4, pause)
    assert (page.completed, page.refused) == (10, errno.ENOSPC)


def test_a_run_without_a_checkpointer_refuses_a_pause_and_says_so_before(make_run: MakeRun) -> None:
    run = make_run()
    page = page_of(run)
    train(run, 4, lambda: setattr(page, "command", Command.PAUSE))
    assert (page.saves, page.completed, page.refused) == (False, 10, 0)


def test_a_pause_that_is_taken_back_while_it_is_saved_stops_nothing(make_run: MakeRun) -> None:
    class Late(torch.nn.Linear):
        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            page.command = Command.NONE
            return super().state_dict(*args, **kwargs)

    run = make_run()
    run.checkpointer(model=Late(1, 1), every=None)
    page = page_of(run)
    train(run, 4, lambda: setattr(page, "command", Command.PAUSE))
    assert page.completed == 10
    assert [record["s"] for record in records(run, "ck")] == [4, 10]


@pytest.mark.parametrize("command", [Command.CANCEL, Command.FENCED])
def test_an_attempt_that_is_cancelled_or_overtaken_saves_nothing(make_run: MakeRun, command: Command) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    with pytest.raises(StopRequested, match=command.reason):
        train(run, 4, lambda: setattr(page_of(run), "command", command))
    assert [r["s"] for r in records(run, "ck")] in ([1, 2], [1, 2, 3])  # the last one is not waited for


def test_a_request_outside_of_the_loop_stops_at_once_and_inside_at_the_boundary(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(StopRequested):
        train(run, 1, lambda: run.request_stop("preempted"))
    assert page_of(run).completed == 1
    with pytest.raises(StopRequested):
        run.request_stop("preempted")


def test_a_pause_that_was_obeyed_is_not_obeyed_again_while_the_loop_is_left(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reminding(Slow):
        def get(self) -> float:
            run.request_stop("paused")  # as the signal's handler does
            return super().get()

    def pause() -> None:
        run.log(a=Reminding(1.0))
        page_of(run).command = Command.PAUSE

    monkeypatch.setattr("trackside.sdk.run.Arriving", Reminding)
    monkeypatch.setattr("trackside.sdk.run.number", lambda key, value: value)
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    with pytest.raises(StopRequested, match="paused"):
        train(run, 4, pause)
    assert page_of(run).completed == 4
    assert [r["m"] for r in records(run, "m")] == [{"a": 1.0}]


def test_a_pause_after_the_loop_is_obeyed_once(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    list(run.steps(2))
    with pytest.raises(StopRequested, match="paused"):
        run.request_stop("paused")
    run.request_stop("paused")  # taken back meanwhile, and asked for again
    with pytest.raises(StopRequested, match="cancelled"):
        run.request_stop("cancelled")
