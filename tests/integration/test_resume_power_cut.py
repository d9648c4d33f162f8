"""A power cut at any moment of a save costs no checkpoint that was told of.

The real save is recorded once, operation by operation; then every state of the folder that a cut may leave is laid
out, and the real loader must restore from it the newest checkpoint that was told, or a newer one.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import power_cut
from power_cut import Entry, Recorder, Synced
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore
from trackside.sdk.context import ResumePoint

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


@dataclass(frozen=True, kw_only=True)
class Recorded:
    log: list[Entry]
    home: int


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Three saves in a new folder, each of which removes the checkpoint before."""
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(root, patch)
        weight = Weight()
        store = CheckpointStore(root / CHECKPOINTS, 1)

        def emit(record: Any) -> None:
            if record["k"] == "ck":
                recorder.told(ResumePoint(name=record["name"], step=record["s"], digest=record["digest"]))

        saver = Checkpointer(store, {"weight": weight}, every=1, keep=1, resume=None, emit=emit)
        for weight.step in SAVES:
            saver.save_step(weight.step)
            saver.settle()
        recorder.told(ResumePoint(name="", step=SAVES[-1]))  # so that the last prune is cut too
    recorder.close()
    return Recorded(log=recorder.log, home=recorder.home)


def lost(recorded: Recorded, scratch: Path, *, bus: bool, without: Callable[[Synced], bool]) -> Iterator[str]:
    """What a cut costs, in words: once for each state in which it costs something."""
    log = [entry for entry in recorded.log if not (isinstance(entry, Synced) and without(entry))]
    for tree, told in power_cut.cuts(log, recorded.home):
        power_cut.write(tree, scratch)
        points = [point for point in reversed(told) if point.name]
        least = max((point.step for point in points), default=0)
        weight = Weight()
        found = Checkpointer(
            CheckpointStore(scratch / CHECKPOINTS, 2),
            {"weight": weight},
            every=1,
            keep=1,
            resume=points if bus and points else None,
            emit=lambda record: None,
        )
        if found.step < least:
            yield f"step {least} was told and step {found.step} restored from {tree_names(tree)}"
        if found.step != weight.step:
            yield f"the checkpoint of step {found.step} held the state of step {weight.step}"
        shutil.rmtree(scratch)


def tree_names(tree: Any, path: str = "") -> list[str]:
    found = []
    for name, content in tree:
        found += [f"{path}{name}: {len(content)}"] if isinstance(content, bytes) else tree_names(content, f"{name}/")
    return found


@pytest.mark.parametrize("bus", [True, False], ids=["as the bus tells", "as the disk shows"])
def test_a_power_cut_costs_no_checkpoint_that_was_told(recorded: Recorded, tmp_path: Path, bus: bool) -> None:
    losses = lost(recorded, tmp_path / "cut", bus=bus, without=lambda synced: False)
    assert list(itertools.islice(losses, 3)) == []
    states = sum(1 for _ in power_cut.cuts(recorded.log, recorded.home))
    print(f"{len(recorded.log)} operations, {states} states")
    assert states > 100


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
def test_without_any_one_flush_a_cut_does_cost(recorded: Recorded, tmp_path: Path, flush: str) -> None:
    flushed = [entry.path for entry in recorded.log if isinstance(entry, Synced)]
    assert any(FLUSHES[flush](path) for path in flushed), f"{flush} is not flushed: {flushed}"
    losses = lost(recorded, tmp_path / "cut", bus=True, without=lambda synced: FLUSHES[flush](synced.path))
    assert next(losses, None) is not None, f"nothing is lost without the flush of {flush}"
