"""What a run saves and what the next attempt of it gets back, whatever happened to the disk meanwhile."""

from __future__ import annotations

import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdk_runs import MakeRun, records
from trackside.errors import CheckpointError, ConfigurationError, InvalidJob
from trackside.sdk import torch_state
from trackside.sdk.context import ResumePoint


def test_checkpoints_come_when_due_when_asked_for_and_at_the_end(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=4, keep=10)
    for step in run.steps(10):
        if step == 5:
            state.save()
    state.save()  # nothing is newer than the last one
    assert [r["s"] for r in records(run, "ck")] == [4, 5, 8, 10]
    assert all(len(r["digest"]) == 64 and r["bytes"] > 0 and r["took_ms"] > 0 for r in records(run, "ck"))


def test_saving_a_step_that_is_saved_says_that_later_changes_are_not(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=4)
    list(run.steps(3))
    assert records(run, "note") == []
    state.extra["accuracy"] = 0.9
    state.save()
    assert [r["s"] for r in records(run, "ck")] == [3]
    (note,) = records(run, "note")
    assert note["text"].startswith("the state after step 3 is on the disk already")


def test_a_save_that_was_asked_for_is_done_with_when_its_step_is_saved(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(model=torch.nn.Linear(1, 1), every=None)
    state.save_step(1, wait=True)
    state.postpone()
    state.save_step(1)
    assert not state.due(2)


def test_a_value_of_the_best_metric_belongs_to_the_next_checkpoint_and_to_no_later_one(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1, keep=1, best="val")
    for step in run.steps(9):
        if step in (2, 6):
            run.log(val=0.1 if step == 2 else 0.5)
    left = sorted(path.name for path in (run.dir.parents[2] / "checkpoints").iterdir())
    assert left == ["step-00000002-a1", "step-00000009-a1"]


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


def test_a_run_whose_checkpoints_are_all_gone_neither_starts_over_nor_prunes_what_is_there(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1, keep=3)
    list(run.steps(4))
    root = run.dir.parents[2] / "checkpoints"
    before = sorted(path.name for path in root.iterdir())
    second = make_run(attempt=2, resume=(ResumePoint(name="step-00000001-a1", step=1),))
    with pytest.raises(InvalidJob, match=r"step-00000001-a1 is missing \(there: step-00000004-a1, .*retry --fresh"):
        second.checkpointer(model=torch.nn.Linear(1, 1), every=1)
    assert sorted(path.name for path in root.iterdir()) == before


def test_a_run_whose_checkpoints_are_all_damaged_starts_over_and_says_so(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), every=1, keep=2)
    list(run.steps(2))
    root = run.dir.parents[2] / "checkpoints"
    for path in root.glob("step-*/model.pt"):
        path.write_bytes(b"")
    resume = tuple(ResumePoint(name=f"step-{s:08d}-a1", step=s) for s in (2, 1))
    for number in (2, 3):  # the next attempt, too, where nobody was left to take them off the record
        again = make_run(attempt=number, resume=resume)
        assert again.checkpointer(model=torch.nn.Linear(1, 1)).step == 0
        assert records(again, "note")[0]["text"].endswith("training starts from step 1")


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
    with pytest.raises(TypeError, match="best is the name of a metric"):
        run.checkpointer(model=torch.nn.Linear(1, 1), best=torch.nn.Linear(1, 1))  # type: ignore[arg-type] # the mistake
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


def test_a_part_that_is_not_asked_for_any_more_is_told_not_to_be_restored(make_run: MakeRun) -> None:
    run = make_run()
    run.checkpointer(model=torch.nn.Linear(1, 1), ema=torch.nn.Linear(1, 1))
    list(run.steps(2))
    later = make_run(attempt=2)
    later.checkpointer(model=torch.nn.Linear(1, 1))
    (note,) = records(later, "note")
    assert note["text"].startswith("step-00000002-a1 also has ema, which the checkpointer was not given")


@pytest.mark.parametrize("version", ["1.13.1", "2.9.1+cu130"])
def test_an_old_torch_is_refused_with_the_version_to_install(version: str) -> None:
    with pytest.raises(CheckpointError, match=r"torch >= 2\.10"):
        torch_state.check_version(version)
    torch_state.check_version("2.10.0")
    torch_state.check_version("3.0.0a0+git1")
