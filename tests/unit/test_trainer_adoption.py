"""Checkpoints taken over from another job: whole, once, and never one that is not what was recorded."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from trackside.sdk.checkpoints import MANIFEST, Checkpoint, CheckpointStore, Written
from trackside_trainer.adoption import adopt


@pytest.fixture
def old(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "old", attempt=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "new"
    path.mkdir()
    return path


def a_checkpoint(store: CheckpointStore) -> Written:
    return store.write(20, {"model.pt": lambda out: out.write(b"weights" * 1000)})


def verified(folder: Path, digest: str) -> None:
    """Raises CheckpointDamaged if what was adopted is not a whole checkpoint of attempt 0 with this digest."""
    store = CheckpointStore(folder, attempt=1)
    (found,) = store.all()
    assert (found.step, found.attempt) == (20, 0)
    store.verify(Checkpoint(path=found.path, step=20, attempt=0), digest)


def test_an_adopted_checkpoint_verifies_shares_its_files_and_is_adopted_once(
    old: CheckpointStore, folder: Path
) -> None:
    written = a_checkpoint(old)
    source = old.root / written.name
    adopted = adopt(source, folder, step=20, digest=written.digest)
    assert adopted is not None
    verified(folder, adopted.digest)
    assert (folder / adopted.name / "model.pt").stat().st_ino == (source / "model.pt").stat().st_ino
    assert adopt(source, folder, step=20, digest=written.digest) == adopted
    for file in source.iterdir():
        file.unlink()
    source.rmdir()
    assert adopt(source, folder, step=20, digest=written.digest) == adopted, "it is needed no more"
    verified(folder, adopted.digest)


def test_a_file_system_without_hard_links_gets_copies(
    old: CheckpointStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr("os.link", refuse)
    written = a_checkpoint(old)
    adopted = adopt(old.root / written.name, folder, step=20, digest=written.digest)
    assert adopted is not None
    verified(folder, adopted.digest)


def test_what_is_gone_or_not_what_was_recorded_is_not_adopted(old: CheckpointStore, folder: Path) -> None:
    written = a_checkpoint(old)
    source = old.root / written.name
    assert adopt(source, folder, step=20, digest="0" * 64) is None
    assert adopt(source.with_name("step-00000099-a1"), folder, step=99, digest=written.digest) is None
    assert adopt(source.parent / ".." / "old", folder, step=20, digest=written.digest) is None
    (source / "model.pt").unlink()
    assert adopt(source, folder, step=20, digest=written.digest) is None
    assert [path for path in folder.iterdir() if not path.name.startswith(".")] == []


def test_a_manifest_that_points_outside_is_not_followed(old: CheckpointStore, folder: Path) -> None:
    source = old.root / a_checkpoint(old).name
    secret = old.root / "secret"
    secret.write_text("secret")
    manifest = (source / MANIFEST).read_bytes().replace(b"model.pt", b"../secret")
    (source / MANIFEST).write_bytes(manifest)
    assert adopt(source, folder, step=20, digest=hashlib.sha256(manifest).hexdigest()) is None
