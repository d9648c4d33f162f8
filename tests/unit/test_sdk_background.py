"""Checkpoints that a thread writes: the loop waits for a copy of the state, and what is saved is that copy."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trackside.errors import CheckpointError
from trackside.sdk import torch_state
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore, HashingFile

LIMIT_S = 30.0


class Disk:
    """A disk that takes no byte until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = threading.Event()
        self.go = threading.Event()
        real = HashingFile.write

        def write(file: HashingFile, data: Any) -> int:
            self.held.set()
            assert self.go.wait(LIMIT_S)
            return real(file, data)

        monkeypatch.setattr(HashingFile, "write", write)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(monkeypatch)
    yield disk
    disk.go.set()


class Saved:
    """A checkpointer of one module, and what it told."""

    def __init__(self, root: Path, model: Any, **options: Any) -> None:
        self.told: list[dict[str, Any]] = []
        self.store = CheckpointStore(root, 1)
        options = {"every": 1, "keep": 3, "resume": (), **options}
        self.checkpointer = Checkpointer(
            self.store, {"model": model}, emit=lambda record: self.told.append(dict(record)), **options
        )

    def kinds(self) -> list[tuple[str, int | None]]:
        return [(record["k"], record.get("s")) for record in self.told]

    def state(self, at: int = 0) -> Any:
        return torch_state.load(self.store.all()[at].path / "model.pt")


def test_the_loop_goes_on_while_the_disk_is_slow_and_the_copy_is_what_is_saved(tmp_path: Path, disk: Disk) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    saved = Saved(tmp_path, model)
    saved.checkpointer.save_step(1)
    assert disk.held.wait(LIMIT_S)
    assert saved.told == []  # no line before the directory has its name
    with torch.no_grad():
        model.weight.add_(1.0)
    disk.go.set()
    saved.checkpointer.settle()

    assert saved.kinds() == [("ck", 1)]
    assert torch.equal(saved.state()["weight"], before)
    assert saved.told[0]["stall_ms"] < saved.told[0]["took_ms"]


def test_what_comes_due_meanwhile_is_left_out_and_told(tmp_path: Path, disk: Disk) -> None:
    saved = Saved(tmp_path, torch.nn.Linear(2, 2))
    saved.checkpointer.save_step(1)
    began_s = time.monotonic()
    for step in range(2, 100):
        saved.checkpointer.save_step(step)
    assert time.monotonic() - began_s < 10.0, "the patience of 0.2 s is for the write, not for each step"
    disk.go.set()
    saved.checkpointer.save_step(100, wait=True)

    assert [step for kind, step in saved.kinds() if kind == "ck"] == [1, 100]
    notes = [record["text"] for record in saved.told if record["k"] == "note"]
    assert [text.split(",")[0] for text in notes] == [
        "the checkpoint of step 2 was left out",
        "the checkpoint of step 11 was left out (10 so far)",
    ]


def test_waiting_means_that_it_is_on_the_disk(tmp_path: Path) -> None:
    saved = Saved(tmp_path, torch.nn.Linear(2, 2))
    saved.checkpointer.save_step(1)
    saved.checkpointer.save_step(1, wait=True)  # the one in flight is this one
    saved.checkpointer.save_step(2, wait=True)
    assert saved.kinds() == [("ck", 1), ("ck", 2)]


def test_a_background_save_is_byte_for_byte_that_of_the_foreground(tmp_path: Path) -> None:
    torch.manual_seed(1)
    linear, norm = torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)
    linear.bias = norm.weight  # tied
    model = torch.nn.Sequential(linear, norm)
    for name, background in (("a", True), ("b", False)):
        saved = Saved(tmp_path / name, model, background=background)
        saved.checkpointer.save_step(1, wait=True)
    first, second = (torch_state.load(tmp_path / name / "step-00000001-a1" / "model.pt") for name in "ab")
    assert list(first.values())[1].data_ptr() == first["1.weight"].data_ptr()
    assert list(first) == list(second)
    assert first._metadata == second._metadata
    assert all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)


def test_a_snapshot_is_detached_from_everything() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": weight, "tied": weight, "view": weight[:, 1], "list": [weight, (1, "x")], "step": 3}
    taken = torch_state.snapshot(state)
    weight.zero_()
    assert taken["a"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert taken["tied"] is taken["a"] is taken["list"][0]
    assert taken["view"].tolist() == [1.0, 4.0]
    assert taken["view"].untyped_storage().nbytes() == 8
    assert (taken["list"][1], taken["step"]) == ((1, "x"), 3)


class Odd(torch.nn.Module):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {"path": Path("x")}


def test_state_that_cannot_be_loaded_is_raised_in_the_loop(tmp_path: Path) -> None:
    saved = Saved(tmp_path, Odd())
    saved.checkpointer.save_step(1)
    saved.checkpointer.settle()
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        saved.checkpointer.check()
    assert saved.told == []
    assert saved.store.all() == []


@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free space"), (errno.EROFS, "read-only"), (errno.EACCES, "writable")]
)
def test_a_disk_that_fails_is_told_each_time_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    saved = Saved(tmp_path, torch.nn.Linear(2, 2))
    saved.checkpointer.save_step(1, wait=True)
    with monkeypatch.context() as patched:

        def fail(fd: int) -> None:
            raise OSError(code, os.strerror(code))

        patched.setattr("trackside.sdk.checkpoints.os.fsync", fail)
        saved.checkpointer.save_step(2, wait=True)
        saved.checkpointer.save_step(3, wait=True)
    saved.checkpointer.save_step(4, wait=True)

    assert saved.kinds() == [("ck", 1), ("note", None), ("note", None), ("ck", 4)]
    assert remedy in saved.told[1]["text"]
    assert "the older ones are kept" in saved.told[1]["text"]
    assert [c.step for c in saved.store.all()] == [4, 1]


def test_a_disk_that_stays_full_does_not_flood_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("trackside.sdk.checkpoints.os.fsync", fail)
    saved = Saved(tmp_path, torch.nn.Linear(2, 2))
    for step in range(1, 100):
        saved.checkpointer.save_step(step, wait=True)
    assert len(saved.told) == 6
    assert "10 times in a row: free space" in saved.told[-1]["text"]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "checkpoints", torch.nn.Linear(2, 2))
    (tmp_path / "checkpoints").rmdir()
    saved.checkpointer.save_step(1, wait=True)
    assert saved.kinds() == [("ck", 1)]


LIMITED = """
import resource, signal, sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_sdk_background import Saved
saved = Saved(Path(sys.argv[1]), torch.nn.Linear(300, 300))
saved.checkpointer.save_step(1, wait=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
saved.checkpointer.save_step(2, wait=True)
print(saved.kinds(), saved.told[-1]["text"])
"""


def test_a_file_that_may_not_grow_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[('ck', 1), ('note', None)] the checkpoint of step 2 was not written ([Errno 27]")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001-a1"]


@pytest.mark.parametrize(("mode", "kept"), [("min", 3), ("max", 1)])
def test_the_best_is_kept_beside_the_newest(tmp_path: Path, mode: str, kept: int) -> None:
    saved = Saved(tmp_path, torch.nn.Linear(2, 2), keep=2, best="loss", best_mode=mode)
    for step, loss in enumerate([9.0, 3.0, 1.0, 2.0, "NaN", 4.0], 1):
        saved.checkpointer.see({"loss": loss, "lr": 0.0})
        saved.checkpointer.save_step(step, wait=True)
    assert [c.step for c in saved.store.all()] == [6, 5, kept]


def test_only_the_newest_damaged_ones_are_kept(tmp_path: Path) -> None:
    saved = Saved(tmp_path, torch.nn.Linear(2, 2), keep=2)
    for step in range(1, 6):
        saved.checkpointer.save_step(step, wait=True)
        if step < 5:
            os.utime(saved.store.quarantine(saved.store.all()[0]), ns=(step, step))
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == [
        "damaged-step-00000003-a1",
        "damaged-step-00000004-a1",
    ]
