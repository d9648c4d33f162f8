"""What the disk holds of jobs: checkpoints, and the files of attempts. Only reads, so no living job is harmed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from trackside.errors import CheckpointDamaged, CheckpointError
from trackside.models import CheckpointRef
from trackside.oracle import Files, Proof
from trackside.sdk import torch_state
from trackside.sdk.checkpoints import Checkpoint, verified

_LOADED_MAX: Final = (
    256 << 20
)  # bytes; what is larger is verified and not loaded, so that looking costs no job its memory


def prove(folder: Path, accepted: Iterable[CheckpointRef]) -> Iterator[Proof]:
    """Verify and load accepted checkpoints in a job's folder."""
    for ref in accepted:
        yield proof(folder, ref)


def proof(folder: Path, ref: CheckpointRef) -> Proof:
    """Whether one is there, matches its manifest and loads with weights_only."""
    path = folder / ref.name
    if not path.is_dir():
        return Proof(name=ref.name, there=False)
    try:
        manifest = verified(Checkpoint(path=path, step=ref.step, attempt=ref.attempt), ref.digest)
    except CheckpointDamaged as error:
        return Proof(name=ref.name, there=True, error=error.message)
    tensors = [name for name in manifest["files"] if name.endswith(".pt")]
    if not tensors or sum(manifest["files"][name]["size"] for name in tensors) > _LOADED_MAX:
        return Proof(name=ref.name, there=True)
    try:
        torch_state.torch()
    except CheckpointError:  # the scripts have a torch of their own
        return Proof(name=ref.name, there=True)
    try:
        for name in tensors:
            torch_state.load(path / name)
    except CheckpointError as error:
        return Proof(name=ref.name, there=True, loads=False, error=error.message)
    return Proof(name=ref.name, there=True, loads=True)


def files(home: Path, job_id: str) -> dict[int, Files]:
    """What each attempt left."""
    found: dict[int, Files] = {}
    for folder in _attempts(home, job_id):
        journal = folder / "journal.jsonl"
        found[int(folder.name)] = Files(
            journal_bytes=_size(journal),
            output_bytes=_size(folder / "output.log"),
            saved=tuple(_steps(journal, "ck")),
            due=tuple(_steps(journal, "due")),
        )
    return found


def sizes(home: Path, job_id: str) -> dict[int, int]:
    """The bytes of each attempt's journal and output, of those that have begun."""
    found = {int(path.name): (_size(path / "journal.jsonl"), path) for path in _attempts(home, job_id)}
    return {number: size + _size(path / "output.log") for number, (size, path) in found.items() if size}


def unfinished(home: Path, job_id: str) -> int:
    """How many checkpoints of a job were left half written."""
    return len(list((home / "jobs" / job_id / "checkpoints").glob(".*.tmp-*")))


def damaged(home: Path, job_id: str) -> int:
    """How many checkpoints of a job were set aside."""
    return len(list((home / "jobs" / job_id / "checkpoints").glob("damaged-*")))


def _attempts(home: Path, job_id: str) -> Iterator[Path]:
    for path in (home / "jobs" / job_id / "attempts").glob("*"):
        if path.name.isdecimal():
            yield path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _steps(journal: Path, kind: str) -> Iterator[int]:
    """The steps that a journal's lines of one kind tell; a line that was cut short by a kill tells nothing."""
    mark = f'"{kind}"'.encode()
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        if mark not in line:
            continue
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and told.get("k") == kind:
            yield int(told["s"])
