"""A power cut at any moment of a save costs no checkpoint that was told of.

The real save is recorded once, operation by operation; then every state of the folder that a cut may leave is laid
out, and the real loader must restore from it the newest checkpoint that was told, or a newer one.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import power_cut
from power_cut import Entry, Recorder, Synced
from trackside.errors import InvalidJob
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore
from trackside.sdk.context import ResumePoint
from trackside_trainer.adoption import adopt

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CHECKPOINTS = "jobs/job-1/checkpoints"
SAVES = (1, 2, 3)


class Weight:
    """A part whose state is the step that it was saved after."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


Story = Callable[[Path, pytest.MonkeyPatch], Recorder]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    log: list[Entry]
    home: int
    start: int


def point(record: Any) -> ResumePoint:
    """What the bus knows of a checkpoint from its journal line."""
    return ResumePoint(name=record["name"], step=record["s"], digest=record["digest"])


def in_a_new_job(root: Path, patch: pytest.MonkeyPatch) -> Recorder:
    """Three saves in a new folder, each of which removes the checkpoint before."""
    recorder = Recorder(root, patch)
    weight = Weight()

    def emit(record: Any) -> None:
        if record["k"] == "ck":
            recorder.told(point(record))

    store = CheckpointStore(root / CHECKPOINTS, 1)
    saver = Checkpointer(store, {"weight": weight}, every=1, keep=1, resume=None, emit=emit)
    for weight.step in SAVES:
        saver.save_step(weight.step)
        saver.settle()
    return recorder


def after_a_damaged_one(root: Path, patch: pytest.MonkeyPatch) -> Recorder:
    """An attempt that finds the newest checkpoint damaged, resumes from the one before, and saves."""
    points: list[ResumePoint] = []

    def note(record: Any) -> None:
        if record["k"] == "ck":
            points.append(point(record))

    weight = Weight()
    store = CheckpointStore(root / CHECKPOINTS, 1)
    saver = Checkpointer(store, {"weight": weight}, every=1, keep=2, resume=None, emit=note, background=False)
    for weight.step in SAVES[:2]:
        saver.save_step(weight.step)
    (root / CHECKPOINTS / points[1].name / "weight.pt").write_bytes(b"damaged")

    recorder = Recorder(root, patch)
    recorder.told(points[0])

    def emit(record: Any) -> None:
        if record["k"] == "ck":
            recorder.told(point(record))

    store = CheckpointStore(root / CHECKPOINTS, 2)
    saver = Checkpointer(store, {"weight": weight}, every=1, keep=1, resume=points[::-1], emit=emit)
    assert saver.step == SAVES[0]
    weight.step = SAVES[-1]
    saver.save_step(weight.step)
    saver.settle()
    return recorder


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Story], Recorded]:
    """Records a story, each once."""

    @cache
    def recorded(story: Story) -> Recorded:
        root = tmp_path_factory.mktemp("recorded")
        with pytest.MonkeyPatch.context() as patch:
            recorder = story(root, patch)
            recorder.told(ResumePoint(name="", step=SAVES[-1]))  # so that the last prune is cut too
        recorder.close()
        return Recorded(log=recorder.log, home=recorder.home, start=recorder.start)

    return recorded


def lost(recorded: Recorded, scratch: Path, *, bus: bool, without: Callable[[Synced], bool]) -> Iterator[str]:
    """What a cut costs, in words: once for each state in which it costs something."""
    log = [entry for entry in recorded.log if not (isinstance(entry, Synced) and entry.path and without(entry))]
    seen = set()
    for tree, told in power_cut.cuts(log, recorded.home, recorded.start):
        power_cut.write(tree, scratch)
        points = [point for point in reversed(told) if point.name]
        least = max((point.step for point in points), default=0)
        weight = Weight()
        store = CheckpointStore(scratch / CHECKPOINTS, 3)  # removes what is unfinished
        left = (contents(scratch), least)
        if left in seen:  # the rest sees no difference to an earlier state
            shutil.rmtree(scratch)
            continue
        seen.add(left)
        try:
            found = Checkpointer(
                store,
                {"weight": weight},
                every=1,
                keep=1,
                resume=points if bus and points else None,
                emit=lambda record: None,
            )
        except InvalidJob:
            yield f"step {least} was told and nothing that was told is in {tree_names(tree)}"
            shutil.rmtree(scratch)
            continue
        if found.step < least:
            yield f"step {least} was told and step {found.step} restored from {tree_names(tree)}"
        if found.step != weight.step:
            yield f"the checkpoint of step {found.step} held the state of step {weight.step}"
        shutil.rmtree(scratch)


def contents(folder: Path) -> tuple[tuple[str, bytes], ...]:
    """Every file below, by its path."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return tuple(sorted((str(path.relative_to(folder)), path.read_bytes()) for path in found))


def tree_names(tree: Any, path: str = "") -> list[str]:
    found = []
    for name, content in tree:
        found += [f"{path}{name}: {len(content)}"] if isinstance(content, bytes) else tree_names(content, f"{name}/")
    return found


@pytest.mark.parametrize("bus", [True, False], ids=["as the bus tells", "as the disk shows"])
@pytest.mark.parametrize("story", [in_a_new_job, after_a_damaged_one])
def test_a_power_cut_costs_no_checkpoint_that_was_told(
    record: Callable[[Story], Recorded], tmp_path: Path, story: Story, bus: bool
) -> None:
    recorded = record(story)
    losses = lost(recorded, tmp_path / "cut", bus=bus, without=lambda synced: False)
    assert list(itertools.islice(losses, 3)) == []
    states = sum(1 for _ in power_cut.cuts(recorded.log, recorded.home, recorded.start))
    print(f"{len(recorded.log)} operations, {states} states")
    assert states > 100


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.mark.parametrize("links", [True, False], ids=["by links", "by copies"])
def test_what_a_cut_leaves_of_an_adopted_checkpoint_hides_the_whole_one_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    root, scratch = tmp_path / "recorded", tmp_path / "cut"
    written = CheckpointStore(root / "old", 1).write(20, {"model.pt": lambda out: out.write(b"weights" * 1000)})
    (root / "checkpoints").mkdir(parents=True)
    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", no_links)
        recorder = Recorder(root, patch)
        adopt(root / "old" / written.name, root / "checkpoints", step=20, digest=written.digest)
    recorder.close()

    states = [tree for tree, _ in power_cut.cuts(recorder.log, recorder.home, recorder.start)]
    assert len(states) > 5
    for tree in states:
        power_cut.write(tree, scratch)
        again = adopt(scratch / "old" / written.name, scratch / "checkpoints", step=20, digest=written.digest)
        assert again is not None, tree_names(tree)
        (found,) = CheckpointStore(scratch / "checkpoints", 1).all()
        CheckpointStore(scratch / "checkpoints", 1).verify(found, again.digest)
        shutil.rmtree(scratch)


# Each flush that a save does, by the path that it flushes.
FLUSHES: dict[str, Callable[[str], bool]] = {
    "the parts": lambda path: path.endswith(".pt"),
    "the manifest": lambda path: path.endswith("manifest.json"),
    "the new directory": lambda path: Path(path).name.startswith(".step-"),
    "the folder of checkpoints": lambda path: path == CHECKPOINTS,
    "the job's folder": lambda path: path == "jobs/job-1",
    "the folder of jobs": lambda path: path == "jobs",
}


@pytest.mark.parametrize("flush", FLUSHES)
def test_without_any_one_flush_a_cut_does_cost(record: Callable[[Story], Recorded], tmp_path: Path, flush: str) -> None:
    recorded = record(in_a_new_job)
    flushed = [entry.path for entry in recorded.log if isinstance(entry, Synced)]
    assert any(FLUSHES[flush](path) for path in flushed), f"{flush} is not flushed: {flushed}"
    losses = lost(recorded, tmp_path / "cut", bus=True, without=lambda synced: FLUSHES[flush](synced.path))
    assert next(losses, None) is not None, f"nothing is lost without the flush of {flush}"
