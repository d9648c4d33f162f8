"""What a training script sees of its run, inside of a job and outside of one."""

from __future__ import annotations

import errno
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trackside
from attempts import context
from attempts import records as read
from trackside.errors import CheckpointError, ConfigurationError, NotInJob, StopRequested
from trackside.sdk import torch_state
from trackside.sdk.context import ResumePoint
from trackside.sdk.page import Command, ControlPage, Phase
from trackside.sdk.run import Run, set_current

MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    monkeypatch.setattr("trackside.sdk.checkpointer._PATIENCE_S", 30.0)  # a slow disk leaves no checkpoint out

    def make(attempt: int = 1, resume: tuple[ResumePoint, ...] | None = None) -> Run:
        folder = tmp_path / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        ControlPage.create(folder / "page")
        run = Run.of_attempt(context(folder, attempt, root=tmp_path, params={"lr": 0.1}, resume=resume))
        set_current(run)
        return run

    yield make
    set_current(None)


def records(run: Run, kind: str | None = None) -> list[dict[str, Any]]:
    return read(run.dir.parent / "journal.jsonl", kind)


def page_of(run: Run) -> ControlPage:
    return ControlPage.open(run.dir.parent / "page")


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


class Slow:
    """A number on a GPU that has not arrived yet, as `values.Arriving` is."""

    def __init__(self, value: float) -> None:
        self.value, self.arrived = value, False

    def here(self) -> bool:
        return self.arrived

    def get(self) -> float:
        return self.value


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


def test_steps_tell_their_progress_on_the_page(make_run: MakeRun) -> None:
    run = make_run()
    page = page_of(run)
    seen = [(step, page.completed, page.phase, page.first, page.total) for step in run.steps(3)]
    assert seen == [(1, 0, Phase.STEPPING, 1, 3), (2, 1, Phase.STEPPING, 1, 3), (3, 2, Phase.STEPPING, 1, 3)]
    assert page.completed == 3
    assert page.phase is Phase.STARTING


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


def test_checkpoints_come_when_due_when_asked_for_and_at_the_end(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=4, keep=10)
    for step in run.steps(10):
        if step == 5:
            state.save()
    state.save()  # nothing is newer than the last one
    assert [r["s"] for r in records(run, "ck")] == [4, 5, 8, 10]
    assert all(len(r["digest"]) == 64 and r["bytes"] > 0 and r["took_ms"] > 0 for r in records(run, "ck"))


def test_everything_that_was_saved_comes_back(make_run: MakeRun) -> None:
    model, generator = torch.nn.Linear(3, 3), torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters())
    run = make_run()
    state = run.checkpointer(model=model, optimizer=optimizer, generator=generator, every=None)
    for _ in run.steps(2):
        model(torch.randn(4, 3, generator=generator)).sum().backward()
        optimizer.step()
        state.extra["best"] = {"loss": 0.25, "at": [1, 2]}
    drawn = torch.rand(4, generator=generator)

    again, fresh = torch.nn.Linear(3, 3), torch.Generator()
    second = make_run(attempt=2)
    restored = second.checkpointer(
        model=again, optimizer=torch.optim.AdamW(again.parameters()), generator=fresh, every=None
    )
    assert restored.step == 2
    assert restored.extra == {"best": {"loss": 0.25, "at": [1, 2]}}
    assert torch.equal(again.weight, model.weight)
    assert torch.equal(torch.rand(4, generator=fresh), drawn)
    assert [r["name"] for r in records(second, "restored")] == ["step-00000002-a1"]


def test_random_numbers_go_on_at_the_first_step_whatever_was_drawn_before_it(make_run: MakeRun) -> None:
    import random

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    drawn = [draw() for _ in run.steps(2)]
    after = draw()
    second = make_run(attempt=2)
    second.checkpointer(model=torch.nn.Linear(1, 1))
    steps = second.steps(3)
    draw()  # such as a loader makes when it is built
    next(steps)
    assert draw() == after
    assert after not in drawn


def test_a_damaged_newest_checkpoint_is_moved_aside_and_the_one_before_is_used(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    list(run.steps(3))
    root = run.dir.parents[2] / "checkpoints"
    path = root / "step-00000003-a1" / "model.pt"
    path.write_bytes(path.read_bytes()[:-1])
    digests = {r["s"]: r["digest"] for r in records(run, "ck")}
    resume = tuple(ResumePoint(name=f"step-{s:08d}-a1", step=s, digest=digests[s]) for s in (3, 2, 1))
    second = make_run(attempt=2, resume=resume)

    assert second.checkpointer(model=torch.nn.Linear(1, 1)).step == 2
    (damaged,) = records(second, "damaged")
    assert damaged["name"] == "step-00000003-a1"
    assert "model.pt" in damaged["why"]
    assert (root / "damaged-step-00000003-a1").is_dir()


def test_one_that_was_gone_back_to_and_pruned_gives_way_to_an_older_one_and_says_so(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    list(run.steps(3))
    shutil.rmtree(run.dir.parents[2] / "checkpoints" / "step-00000002-a1")
    second = make_run(attempt=2, resume=tuple(ResumePoint(name=f"step-{s:08d}-a1", step=s) for s in (2, 1)))

    assert second.checkpointer(model=torch.nn.Linear(1, 1)).step == 1
    (note,) = records(second, "note")
    assert note["text"].startswith("step-00000002-a1 was to go on from and could not be used: ")


def test_a_checkpoint_that_goes_away_while_it_is_read_is_passed_over(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    list(run.steps(2))
    load = torch_state.load

    def load_late(path: Path) -> Any:
        if path.parent.name == "step-00000002-a1":
            shutil.rmtree(path.parent)
        return load(path)

    monkeypatch.setattr(torch_state, "load", load_late)
    second = make_run(attempt=2)
    assert second.checkpointer(model=torch.nn.Linear(1, 1)).step == 1
    assert [r["name"] for r in records(second, "damaged")] == ["step-00000002-a1"]


def test_an_empty_list_of_checkpoints_means_a_fresh_start(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    list(run.steps(1))
    assert make_run(attempt=2, resume=()).checkpointer(model=torch.nn.Linear(1, 1)).step == 0


def test_a_disk_that_takes_no_checkpoint_does_not_stop_training(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=2)
    monkeypatch.setattr("trackside.sdk.checkpoints.os.fsync", full)
    assert list(run.steps(4)) == [1, 2, 3, 4]
    assert [r["text"].split(" (")[0] for r in records(run, "note")] == [
        "the checkpoint of step 2 was not written",
        "the checkpoint of step 4 was not written",
    ]


class Odd:
    """A part whose state only unpickling could rebuild."""

    def state_dict(self) -> dict[str, Any]:
        return {"price": Decimal("1.5")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError("never loaded")


def test_state_that_could_not_be_loaded_fails_at_the_first_save(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(odd=Odd(), every=1)
    with pytest.raises(CheckpointError, match=r"odd\.pt"):
        list(run.steps(1))
    assert not list((run.dir.parents[2] / "checkpoints").glob("step-*"))


def test_mistakes_with_the_checkpointer_are_told_at_once(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(TypeError, match="'counter' is a int"):
        run.checkpointer(counter=3)
    with pytest.raises(TypeError, match="nothing to save"):
        run.checkpointer()
    with pytest.raises(ValueError, match="keep"):
        run.checkpointer(model=torch.nn.Linear(1, 1), keep=0)
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    with pytest.raises(ConfigurationError, match="pass all parts to one"):
        run.checkpointer(model=torch.nn.Linear(1, 1))
    state.extra["when"] = Path("x")
    with pytest.raises(TypeError, match=r"extra\['when'\]"):
        list(run.steps(1))
    with pytest.raises(ConfigurationError, match="one loop"):
        run.steps(1)


def test_a_new_part_is_not_silently_left_untrained(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    list(run.steps(1))
    with pytest.raises(CheckpointError, match="has no part 'ema'"):
        make_run(attempt=2).checkpointer(model=torch.nn.Linear(1, 1), ema=torch.nn.Linear(1, 1))


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu130"])
def test_an_old_torch_is_refused_with_the_version_to_install(version: str) -> None:
    with pytest.raises(CheckpointError, match=r"torch >= 2\.10"):
        torch_state.check_version(version)
    torch_state.check_version("2.10.0")
    torch_state.check_version("3.0.0a0+git1")


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
state = run.checkpointer(model=torch.nn.Linear(1, 1), every=10)
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
