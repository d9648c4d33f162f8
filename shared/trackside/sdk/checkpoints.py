"""Checkpoints on disk: how one is written, proved, listed, pruned and, when damaged, moved aside. Knows no torch.

How one comes to be:
    1. files are written into `.<name>.tmp-<pid>`, hashed on the way, each flushed to the disk;
    2. `manifest.json` with the size and SHA-256 of every file is written and flushed;
    3. the directory is flushed, renamed to `step-<step>-a<attempt>`, and its parent flushed; with the first one, the
       folders above too, since whoever made them did not.
A kill at any byte, or a power cut, leaves either a hidden directory that the next start removes, or a whole checkpoint.
The attempt is part of the name, so that an attempt that was overtaken can never write over its successor's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from trackside.errors import CheckpointDamaged, InvalidJob
from trackside.sdk import encode
from trackside.sdk.context import ResumePoint
from trackside.sdk.journal import now_ms

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
_NAME: Final = re.compile(r"step-(\d{8,})-a(\d+)")
_ASIDE: Final = re.compile(r"\.step-.*\.tmp-\d+")
_HASH_BYTES: Final = 1 << 20
_DAMAGED_KEPT: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint directory, whole by its name, proved only by `CheckpointStore.verify`."""

    path: Path
    step: int
    attempt: int

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A checkpoint that was just written."""

    name: str
    step: int
    size_bytes: int
    digest: str  # SHA-256 of the manifest, and so of everything


class HashingFile:
    """A file open for writing that knows the size and hash of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None  # what a library that writes through us may report as something else

    def write(self, data: Any) -> int:
        """Write bytes; returns how many."""
        self._hash.update(data)
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.size_bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def checkpoint_name(step: int, attempt: int) -> str:
    """The directory name of the state after `step`, as `attempt` wrote it."""
    return f"step-{step:08d}-a{attempt}"


def parse_name(name: str) -> tuple[int, int] | None:
    """The step and the attempt that a checkpoint's directory name tells; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


class CheckpointStore:
    """The checkpoints of one job, written by one attempt."""

    def __init__(self, root: Path, attempt: int) -> None:
        self.root = root
        self.attempt = attempt
        self._proved: set[str] = set()  # names that this process wrote or verified
        self._rooted = False  # whether a power cut can no longer take the folder itself
        root.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()

    def write(
        self,
        step: int,
        files: Mapping[str, Callable[[HashingFile], object]],
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Written:
        """Write a checkpoint of `step`; each function writes the file of its name. Nothing is left when one raises.

        `facts` go into the manifest beside what it says of the files.
        """
        name = checkpoint_name(step, self.attempt)
        target = self.root / name
        if target.exists():
            self.quarantine(Checkpoint(path=target, step=step, attempt=self.attempt))
        aside = self.root / f".{name}.tmp-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            sums = {file: _write_file(aside / file, write) for file, write in files.items()}
            manifest = encode.dumps(
                {"v": VERSION, "step": step, "attempt": self.attempt, "t": now_ms(), **facts, "files": sums}
            )
            _write_file(aside / MANIFEST, lambda out: out.write(manifest))
            sync_directory(aside)
            aside.rename(target)
            sync_directory(self.root)
            self._root()
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        self._proved.add(name)
        size = len(manifest) + sum(fact["size"] for fact in sums.values())
        return Written(name=name, step=step, size_bytes=size, digest=hashlib.sha256(manifest).hexdigest())

    def all(self) -> list[Checkpoint]:
        """Every checkpoint, newest first: a later attempt comes first, since it knows what became of the earlier."""
        found = []
        for path in self.root.iterdir():
            told = parse_name(path.name)
            if told and path.is_dir():
                found.append(Checkpoint(path=path, step=told[0], attempt=told[1]))
        return sorted(found, key=lambda c: (c.attempt, c.step), reverse=True)

    def candidates(self, resume: Sequence[ResumePoint] | None) -> Iterator[tuple[Checkpoint, str | None]]:
        """What to try to resume from, best first, each with the digest it must have if that is known.

        With `resume` None it is what lies on the disk; an empty `resume` means a fresh start. When none of the listed
        ones can be used, older ones on the disk follow, for losing all progress helps nobody; never newer ones: the job
        went back from them, or they were never accepted.
        """
        if resume is not None and not resume:
            return
        there = {checkpoint.name: checkpoint for checkpoint in self.all()}
        for point in resume or ():
            checkpoint = there.pop(point.name, None)
            if checkpoint is not None:
                yield checkpoint, point.digest
        newest = max((point.step for point in resume), default=0) if resume is not None else None
        for checkpoint in there.values():
            if newest is None or checkpoint.step <= newest:
                yield checkpoint, None

    def verify(self, checkpoint: Checkpoint, digest: str | None = None) -> dict[str, Any]:
        """Return the manifest once every file matches it; raises CheckpointDamaged saying what does not."""
        manifest = verified(checkpoint, digest)
        self._proved.add(checkpoint.name)
        return manifest

    def quarantine(self, checkpoint: Checkpoint) -> Path:
        """Move a checkpoint out of the way, keeping it for whoever wants to know what happened."""
        self._proved.discard(checkpoint.name)
        number = 0
        while True:
            aside = self.root / (f"damaged-{checkpoint.name}" + (f"-{number}" if number else ""))
            if not aside.exists():
                checkpoint.path.rename(aside)
                return aside
            number += 1

    def prune(
        self, keep: int, *, best: str | None = None, best_mode: str = "min", accepted: int | None = None
    ) -> list[str]:
        """Remove all but the newest `keep` and the best, but never the newest and never the last one that verifies.

        Nor the one of step `accepted`: while the bus is out of reach newer ones come, but a next attempt resumes there.
        Nor the one after that: the bus may have accepted it too, and the answer be on its way.
        The best is the one whose manifest has the lowest (or highest) value of the metric `best`. An attempt that sees
        checkpoints of a later one has been overtaken and removes nothing.
        """
        everything = self.all()
        if everything and everything[0].attempt > self.attempt:
            return []
        kept, spare = everything[: max(keep, 1)], everything[max(keep, 1) :]
        if best is not None and spare:
            chosen = _best(everything, best, best_mode)
            spare = [checkpoint for checkpoint in spare if checkpoint is not chosen]
        if accepted is not None:
            asked = min((checkpoint.step for checkpoint in everything if checkpoint.step > accepted), default=None)
            spare = [checkpoint for checkpoint in spare if checkpoint.step not in (accepted, asked)]
        if spare and not any(self._is_proved(checkpoint) for checkpoint in kept):
            saviour = next((checkpoint for checkpoint in spare if self._is_proved(checkpoint)), None)
            spare = [checkpoint for checkpoint in spare if saviour is not None and checkpoint is not saviour]
        removed = []
        for checkpoint in spare:
            # Renamed first: what a kill leaves half removed must not look like a checkpoint.
            aside = self.root / f".{checkpoint.name}.tmp-{os.getpid()}"
            try:
                checkpoint.path.rename(aside)
                shutil.rmtree(aside)
            except OSError:
                continue  # harmless: the next prune or start tries again
            removed.append(checkpoint.name)
        self._prune_damaged()
        return removed

    def _prune_damaged(self) -> None:
        """Keep the newest damaged ones only: they are there to be looked at, not to fill the disk."""
        found: list[tuple[int, Path]] = []
        for path in self.root.glob("damaged-*"):
            with suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found, reverse=True)[_DAMAGED_KEPT:]:
            shutil.rmtree(path, ignore_errors=True)

    def _is_proved(self, checkpoint: Checkpoint) -> bool:
        if checkpoint.name in self._proved:
            return True
        try:
            self.verify(checkpoint)
        except CheckpointDamaged:
            return False
        return True

    def _root(self) -> None:
        """Flush the names of the folder and of those above it, as far as its file system goes."""
        if self._rooted:
            return
        root = self.root.absolute()
        device = root.stat().st_dev
        for folder in root.parents:
            with suppress(OSError):  # one that may not be read was not made for this job
                if folder.stat().st_dev != device:
                    break
                sync_directory(folder)
        self._rooted = True

    def _remove_unfinished(self) -> None:
        for path in self.root.iterdir():
            if _ASIDE.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _write_file(path: Path, write: Callable[[HashingFile], object]) -> dict[str, Any]:
    with path.open("xb") as file:
        out = HashingFile(file)
        try:
            write(out)
        except Exception:
            if out.error is not None:
                raise out.error from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return {"size": out.size_bytes, "sha256": out.hexdigest()}


def check_to_go_on(root: Path, resume: Sequence[ResumePoint], *, went_back: bool = False) -> None:
    """Raise InvalidJob where an attempt would start over, and prune what is there, as nothing it was given is there.

    One that was set aside as damaged counts as there: that is told, and an older one is used. `went_back`: where newer
    ones than the first of `resume` are there, the job went back to it, and must not go further back than that.
    """
    folders = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    missing = [point for point in resume if folders.isdisjoint({point.name, f"damaged-{point.name}"})]
    if not missing:
        return
    there = {name: told[0] for name in folders if (told := parse_name(name))}
    chosen_is_gone = went_back and missing[0] is resume[0] and max(there.values(), default=0) > resume[0].step
    if len(missing) < len(resume) and not chosen_is_gone:
        return
    shown = ", ".join(sorted(there, key=lambda name: there[name], reverse=True)) or "none"
    raise InvalidJob(
        f"the checkpoints to go on from are not in {root} any more: {resume[0].name} is missing (there: {shown}); put "
        "them back and `trackside retry` the job, or start over with `trackside retry --fresh`"
    )


def verified(checkpoint: Checkpoint, digest: str | None = None) -> dict[str, Any]:
    """Return the manifest once every file matches it; raises CheckpointDamaged saying what does not."""
    manifest = _read_manifest(checkpoint, digest)
    for name, fact in manifest["files"].items():
        _verify_file(checkpoint.path / name, fact)
    return manifest


def sync_directory(path: Path) -> None:
    """Flush the names in a directory to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _best(checkpoints: Sequence[Checkpoint], metric: str, mode: str) -> Checkpoint | None:
    """The checkpoint with the best value of the metric, the newest of equals; None when none tells it."""
    found: list[tuple[float, Checkpoint]] = []
    for checkpoint in checkpoints:
        with suppress(CheckpointDamaged, KeyError, TypeError, ValueError):
            value = float(_read_manifest(checkpoint, None)["metrics"][metric])
            found.append((value if mode == "min" else -value, checkpoint))
    return min(found, key=lambda each: each[0])[1] if found else None


def _read_manifest(checkpoint: Checkpoint, digest: str | None) -> dict[str, Any]:
    try:
        data = (checkpoint.path / MANIFEST).read_bytes()
        manifest = encode.loads(data)
        files = manifest["files"]
        plain = all(Path(name).name == name and fact["size"] >= 0 and fact["sha256"] for name, fact in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(checkpoint.path / MANIFEST, f"{type(error).__name__}: {error}") from error
    if not plain:
        raise _damaged(checkpoint.path / MANIFEST, "it names a file outside of its directory")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(checkpoint.path / MANIFEST, "it is not the manifest that was recorded")
    if (manifest.get("step"), manifest.get("attempt")) != (checkpoint.step, checkpoint.attempt):
        raise _damaged(checkpoint.path / MANIFEST, "it is of another step or attempt than its directory's name says")
    return dict(manifest)


def _verify_file(path: Path, fact: Mapping[str, Any]) -> None:
    found = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size != fact["size"]:
            raise _damaged(path, f"{size} bytes where the manifest says {fact['size']}")
        with path.open("rb") as file:
            while chunk := file.read(_HASH_BYTES):
                found.update(chunk)
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if found.hexdigest() != fact["sha256"]:
        raise _damaged(path, "its SHA-256 is not the manifest's")


def _damaged(path: Path, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{path.parent.name}/{path.name}: {why}; an older checkpoint is used", path=str(path))
