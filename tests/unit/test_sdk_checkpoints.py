"""A checkpoint is whole or not there, whatever moment the process dies at."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trackside.errors import CheckpointDamaged
from trackside.sdk.checkpoints import MANIFEST, Checkpoint, CheckpointStore, HashingFile
from trackside.sdk.context import ResumePoint


def filled(content: bytes) -> Callable[[HashingFile], object]:
    return lambda out: out.write(content)


def write(store: CheckpointStore, step: int) -> str:
    files = {"model.pt": filled(b"m" * 1000 + str(step).encode()), "_rng.pt": filled(b"r" * 100)}
    return store.write(step, files).name


def damage(checkpoint: Checkpoint, file: str = "model.pt") -> None:
    path = checkpoint.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


KILLED = """
import os, signal, sys
from pathlib import Path
from trackside.sdk import checkpoints
from trackside.sdk.checkpoints import CheckpointStore

root, where, at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = CheckpointStore(root, 1)
def fill(out):
    for _ in range(10):
        out.write(b"m" * 100)

content = {"model.pt": fill, "_rng.pt": lambda out: out.write(b"r" * 99)}
store.write(1, content)
count = 0

def die_at(n):
    global count
    count += n
    if count > at:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "byte":
    whole = checkpoints.HashingFile.write
    def write(self, data):
        for i in range(len(data)):
            self._file.flush()
            die_at(1)
            whole(self, data[i:i + 1])
        return len(data)
    checkpoints.HashingFile.write = write
else:
    real_fsync, real_rename = os.fsync, Path.rename
    os.fsync = lambda fd: (die_at(1), real_fsync(fd))[1]
    Path.rename = lambda self, target: (die_at(1), real_rename(self, target))[1]
store.write(2, content)
die_at(10**9)
"""
SAVE_BYTES = 1450  # the files of KILLED's checkpoint are 1099 bytes, its manifest about 270


def places() -> list[tuple[str, int]]:
    rng = random.Random(20)
    return [("byte", rng.randrange(SAVE_BYTES)) for _ in range(8)] + [("call", at) for at in range(7)]


@pytest.mark.parametrize(("where", "at"), places())
def test_a_kill_in_the_midst_of_a_save_leaves_no_half_checkpoint(tmp_path: Path, where: str, at: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where, str(at)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    store = CheckpointStore(tmp_path, 2)
    there = store.all()
    assert [c.step for c in there] in ([2, 1], [1])
    for checkpoint in there:
        store.verify(checkpoint)
    assert {path.name for path in tmp_path.iterdir()} == {c.name for c in there}


def test_a_written_checkpoint_verifies_by_its_digest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    written = store.write(100, {"model.pt": filled(b"m")})
    checkpoint = store.all()[0]

    assert written.name == checkpoint.name == "step-00000100-a3"
    assert store.verify(checkpoint, written.digest)["step"] == 100
    assert written.size_bytes == sum(p.stat().st_size for p in checkpoint.path.iterdir())
    with pytest.raises(CheckpointDamaged, match="not the manifest that was recorded"):
        store.verify(checkpoint, "0" * 64)


@pytest.mark.parametrize("file", ["model.pt", "_rng.pt", MANIFEST])
def test_one_flipped_bit_is_noticed(tmp_path: Path, file: str) -> None:
    store = CheckpointStore(tmp_path, 1)
    digest = store.write(1, {"model.pt": filled(b"m" * 99), "_rng.pt": filled(b"r" * 99)}).digest
    damage(store.all()[0], file)
    with pytest.raises(CheckpointDamaged):
        store.verify(store.all()[0], digest)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"files":{"../../x":{"size":1,"sha256":"a"}}}', b'{"files":3}', b"\xff"]
)
def test_a_manifest_that_is_none_is_damage_and_no_crash(tmp_path: Path, content: bytes) -> None:
    store = CheckpointStore(tmp_path, 1)
    write(store, 1)
    (store.all()[0].path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointDamaged):
        store.verify(store.all()[0])


def test_a_renamed_checkpoint_does_not_pass_for_another_step(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    write(store, 1)
    store.all()[0].path.rename(tmp_path / "step-00000009-a1")
    with pytest.raises(CheckpointDamaged, match="another step"):
        store.verify(store.all()[0])


def test_a_failing_save_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    with pytest.raises(OSError, match="full"):
        store.write(1, {"a.pt": filled(b"a"), "b.pt": lambda out: (_ for _ in ()).throw(OSError("full"))})
    assert list(tmp_path.iterdir()) == []


def test_a_later_attempt_comes_before_a_higher_step(tmp_path: Path) -> None:
    write(CheckpointStore(tmp_path, 1), 100)
    write(CheckpointStore(tmp_path, 1), 300)  # written by an attempt that did not know it was overtaken
    write(CheckpointStore(tmp_path, 2), 200)
    assert [c.name for c in CheckpointStore(tmp_path, 3).all()] == [
        "step-00000200-a2",
        "step-00000300-a1",
        "step-00000100-a1",
    ]


def test_the_recorded_list_is_followed_and_an_empty_one_means_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    for step in (1, 2, 3):
        write(store, step)
    listed = (ResumePoint(name="step-00000009-a1", step=9), ResumePoint(name="step-00000002-a1", step=2, digest="d"))

    assert [(c.step, digest) for c, digest in store.candidates(listed)] == [(2, "d"), (3, None), (1, None)]
    assert [(c.step, digest) for c, digest in store.candidates(listed[1:])] == [(2, "d"), (1, None)], "it went back"
    assert [c.step for c, _ in store.candidates(None)] == [3, 2, 1]
    assert list(store.candidates(())) == []


def test_a_damaged_one_is_moved_aside_each_under_its_own_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    for expected in ("damaged-step-00000001-a1", "damaged-step-00000001-a1-1"):
        write(store, 1)
        assert store.quarantine(store.all()[0]).name == expected
    assert store.all() == []


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    for step in range(1, 6):
        write(store, step)
    assert store.prune(keep=2) == ["step-00000003-a1", "step-00000002-a1", "step-00000001-a1"]
    assert [c.step for c in store.all()] == [5, 4]
    assert store.prune(keep=0) == ["step-00000004-a1"]


def test_pruning_keeps_the_one_that_a_next_attempt_would_resume_from(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    for step in range(1, 6):
        write(store, step)
    assert store.prune(keep=2, accepted=2) == ["step-00000001-a1"]  # of 3 the answer may be on its way
    assert store.prune(keep=2, accepted=4) == ["step-00000003-a1", "step-00000002-a1"]


def test_pruning_never_removes_the_last_one_that_verifies(tmp_path: Path) -> None:
    earlier = CheckpointStore(tmp_path, 1)
    for step in range(1, 6):
        write(earlier, step)
    for checkpoint in earlier.all()[:3]:
        damage(checkpoint)
    store = CheckpointStore(tmp_path, 2)  # has neither written nor verified any of them

    assert store.prune(keep=2) == ["step-00000003-a1", "step-00000001-a1"]
    assert [c.step for c in store.all()] == [5, 4, 2]


def test_an_attempt_that_was_overtaken_removes_nothing(tmp_path: Path) -> None:
    overtaken = CheckpointStore(tmp_path, 1)
    for step in (1, 2):
        write(overtaken, step)
    write(CheckpointStore(tmp_path, 2), 3)
    assert overtaken.prune(keep=1) == []


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    write(store, 1)
    write(store, 1)
    assert [c.step for c in store.all()] == [1]
    store.verify(store.all()[0])
