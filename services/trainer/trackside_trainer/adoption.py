"""Checkpoints that a job takes over from the one it does again.

Files are hard links where the file system has them, so nothing is copied, and neither job can lose them by the other's
pruning. The manifest is written anew, since it names the attempt: an adopted checkpoint is attempt 0's, older than all
that the job writes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from trackside import logs
from trackside.sdk import encode
from trackside.sdk.checkpoints import MANIFEST, checkpoint_name, parse_name, sync_directory


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """An adopted checkpoint: its directory's name, and the SHA-256 of its manifest."""

    name: str
    digest: str


def adopt(source: Path, folder: Path, *, step: int, digest: str) -> Adopted | None:
    """Link the checkpoint at `source` into `folder`; None if it is not whole any more. A second call finds the first's.

    `digest` is what the manifest at `source` must have; the files are verified by whoever loads them.
    """
    name = checkpoint_name(step, 0)
    target = folder / name
    try:
        if not target.is_dir():
            _link(source, target, digest)
        return Adopted(name=name, digest=hashlib.sha256((target / MANIFEST).read_bytes()).hexdigest())
    except (OSError, ValueError, KeyError, TypeError) as error:
        logs.get().warning("checkpoint_not_adopted", source=source.name, why=str(error))
        return None


def _link(source: Path, target: Path, digest: str) -> None:
    raw = (source / MANIFEST).read_bytes()
    if parse_name(source.name) is None or hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{source.name} is not the checkpoint that was recorded")
    manifest = encode.loads(raw)
    aside = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    for file in manifest["files"]:
        if Path(file).name != file:
            raise ValueError(f"its manifest names {file!r}, outside of its directory")
        try:
            os.link(source / file, aside / file)
        except FileNotFoundError:
            raise
        except OSError:  # some shared file systems have no hard links
            _copy(source / file, aside / file)
    with (aside / MANIFEST).open("wb") as out:
        out.write(encode.dumps({**manifest, "attempt": 0}))
        out.flush()
        os.fsync(out.fileno())
    sync_directory(aside)  # else a power cut could leave half of it under its name
    aside.rename(target)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as out:
        shutil.copyfileobj(read, out)
        out.flush()
        os.fsync(out.fileno())
