"""A resume that could not go on from what it names is refused where the disk can be seen, and the pause stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli_world import World
from makers import a_checkpoint
from trackside.jobstore import Change
from trackside.models import JobState, Outcome, Reason

NAMES = ("step-00000003-a1", "step-00000002-a1")


@pytest.fixture
def checkpoints(world: World) -> Iterator[Path]:
    """The folder of a paused job's checkpoints, two of which are on its record."""
    world.running("j")
    refs = tuple(a_checkpoint(step, name=name, storage="data") for step, name in zip((3, 2), NAMES, strict=True))
    world.store.change("j", lambda job, _: Change(job=replace(job, checkpoints=refs)))
    world.store.pause("j")
    world.store.end_attempt("j", 1, Outcome(reason=Reason.PAUSED))
    world.finish("j", JobState.PAUSED)
    folder = world.home / "jobs" / "j" / "checkpoints"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
    (world.home / "storage-id").write_text("data")
    yield folder
    shutil.rmtree(world.home / "jobs")  # the home is that of other tests too
    (world.home / "storage-id").unlink()


def test_a_checkpoint_that_is_gone_is_refused_with_those_that_are_there(world: World, checkpoints: Path) -> None:
    before = world.store.job("j")
    (checkpoints / NAMES[1]).rmdir()
    error = world.run("resume", "j", "--from", NAMES[1], code=2).err
    assert f"{NAMES[1]} is not on the disk any more; there are: {NAMES[0]}" in error
    assert world.store.job("j") == before
    world.run("resume", "j", "--from", NAMES[0])
    assert world.store.job("j").state is JobState.QUEUED


def test_a_job_whose_checkpoints_are_all_gone_stays_paused(world: World, checkpoints: Path) -> None:
    shutil.move(checkpoints, checkpoints.with_name("elsewhere"))
    assert "put them back" in world.run("resume", "j", code=2).err
    assert world.store.job("j").state is JobState.PAUSED
    shutil.move(checkpoints.with_name("elsewhere"), checkpoints)
    world.run("resume", "j")


def test_what_lies_on_another_disk_is_not_judged(world: World, checkpoints: Path) -> None:
    (world.home / "storage-id").write_text("other")
    shutil.rmtree(checkpoints)
    world.run("resume", "j", "--from", NAMES[1])
    assert world.store.job("j").state is JobState.QUEUED
