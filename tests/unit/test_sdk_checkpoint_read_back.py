"""Every checkpoint is read back before it is told, and what has nothing to do with the state condemns none."""

from __future__ import annotations

import enum
import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdk_runs import MakeRun, records
from trackside.errors import CheckpointError
from trackside.sdk.checkpointer import Checkpointer, Emit
from trackside.sdk.checkpoints import CheckpointStore, HashingFile, Written


class Kind(enum.IntEnum):
    A = 1


class Changing:
    """A part whose state becomes another kind of thing in the course of training."""

    def __init__(self) -> None:
        self.value: Any = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("value", [frozenset({1}), Kind.A])
def test_a_later_state_that_could_not_be_loaded_removes_none_that_could(
    make_run: MakeRun, value: Any, background: bool
) -> None:
    run, part = make_run(), Changing()
    run.checkpointer(part=part, every=1, keep=1, background=background)

    def train() -> None:
        for step in run.steps(6):
            part.value = value if step >= 3 else step

    with pytest.raises(CheckpointError, match=r"part\.pt does not load"):
        train()
    assert [r["s"] for r in records(run, "ck")] == [1, 2]

    again = Changing()
    assert make_run(attempt=2).checkpointer(part=again).step == 2
    assert again.value == 2


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.5),
        np.float32(0.1),
        np.float16(2),
        np.longdouble("0.1"),
        np.complex64(1j),
        np.int64(3),
        np.uint8(4),
        np.bool_(True),
        np.str_("é"),
        np.bytes_(b"a"),
    ],
)
def test_numbers_of_numpy_come_back_as_they_were(make_run: MakeRun, value: Any) -> None:
    safe = set(torch.serialization.get_safe_globals())
    run, part = make_run(), Changing()
    state = run.checkpointer(part=part, every=1)
    for _ in run.steps(1):
        part.value = state.extra["value"] = value

    again = Changing()
    restored = make_run(attempt=2).checkpointer(part=again)
    for found in (again.value, restored.extra["value"]):
        assert (type(found), found) == (type(value), value)
    assert set(torch.serialization.get_safe_globals()) == safe


def test_what_the_script_itself_takes_for_safe_stays_so(make_run: MakeRun) -> None:
    with torch.serialization.safe_globals([np.dtype]):
        run = make_run()
        run.checkpointer(part=Changing(), every=1)
        list(run.steps(1))
        assert np.dtype in torch.serialization.get_safe_globals()


def test_a_subclass_of_a_plain_type_is_refused_by_name(make_run: MakeRun) -> None:
    run = make_run()
    state = run.checkpointer(part=Changing(), every=1)
    state.extra["kind"] = Kind.A
    with pytest.raises(TypeError, match=r"extra\['kind'\] is a Kind"):
        list(run.steps(1))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("unable to mmap 8 bytes from file <model.pt>: Cannot allocate memory (12)"),
    ],
)
def test_a_read_back_that_the_machine_fails_condemns_no_checkpoint(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    run = make_run()
    run.checkpointer(part=Changing(), every=1)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "load", fail)
        assert list(run.steps(3)) == [1, 2, 3]
    assert [r["s"] for r in records(run, "ck")] == [1, 2, 3]
    (note,) = records(run, "note")
    assert note["text"].startswith("the checkpoint of step 1 was not read back, for the machine failed (")
    assert make_run(attempt=2).checkpointer(part=Changing()).step == 3


def saving(root: Path, emit: Emit) -> Checkpointer:
    store = CheckpointStore(root, 1)
    return Checkpointer(store, {"part": Changing()}, every=1, keep=2, resume=None, emit=emit, background=False)


def test_a_folder_that_goes_away_before_pruning_does_not_stop_training(tmp_path: Path) -> None:
    root, told = tmp_path / "checkpoints", []

    def emit(record: Mapping[str, Any]) -> None:
        told.append(dict(record))
        if record.get("s") == 2:
            shutil.rmtree(root)

    checkpointer = saving(root, emit)
    for step in (1, 2, 3):
        checkpointer.save_step(step)
    assert [record["k"] for record in told] == ["ck", "ck", "note", "ck"]
    assert told[2]["text"].startswith(
        "checkpoints that are not needed any more were not removed, for the disk failed ("
    )
    assert [path.name for path in root.iterdir()] == ["step-00000003-a1"]


def test_a_checkpoint_that_is_gone_before_it_was_read_back_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CheckpointStore.write

    def gone(
        store: CheckpointStore, step: int, files: Mapping[str, Callable[[HashingFile], object]], *rest: Any
    ) -> Written:
        written = write(store, step, files, *rest)
        if step == 2:
            shutil.rmtree(store.root)
        return written

    monkeypatch.setattr(CheckpointStore, "write", gone)
    told: list[dict[str, Any]] = []
    checkpointer = saving(tmp_path / "checkpoints", lambda record: told.append(dict(record)))
    for step in (1, 2, 3):
        checkpointer.save_step(step)
    assert [(record["k"], record.get("s")) for record in told] == [("ck", 1), ("note", None), ("ck", 3)]
    assert told[1]["text"].startswith("the checkpoint of step 2 was not written (")
