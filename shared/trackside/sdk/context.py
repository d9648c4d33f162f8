"""What one attempt is told: written by the worker as `attempt.json`, read by the attempt's process."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from trackside.errors import ConfigurationError
from trackside.sdk import encode
from trackside.sdk.journal import MAX_BYTES
from trackside.wholefile import write_whole

ENVIRONMENT: Final = "TRACKSIDE_ATTEMPT"
HELD_BACK: Final = frozenset({signal.SIGTERM, signal.SIGINT})  # from the fork on, until the runner's handlers stand
STACKS_FILE: Final = "stacks.txt"  # in the attempt's folder: the stacks of all threads, each time SIGUSR2 came
VERSION: Final = 1

ProgramKind = Literal["script", "module", "function"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run: a file under the work directory, a module, or `module:function`."""

    kind: ProgramKind
    target: str
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """A checkpoint that the bus has accepted; `digest` is the SHA-256 of its manifest, None when not known."""

    name: str
    step: int
    digest: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptContext:
    """Everything that an attempt's process needs to know about itself."""

    job: str
    attempt: int
    name: str
    slot: str
    params: Mapping[str, Any]
    attempt_dir: Path
    journal: Path
    page: Path
    work_dir: Path  # a fresh copy of what was submitted: the attempt's current directory
    files_dir: Path  # `run.dir`
    checkpoints_dir: Path
    program: Program
    resume: tuple[ResumePoint, ...] | None = None  # newest first; None: look on the disk; empty: start fresh
    threads: int = 1
    gpu_uuid: str | None = None  # None: a CPU slot
    journal_max_bytes: int = MAX_BYTES

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> AttemptContext:
        """Read a context; fields of later versions are passed over. Raises ConfigurationError when it is none."""
        try:
            raw = encode.loads(Path(path).read_bytes())
            return cls._from_record(raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is no attempt file ({type(error).__name__}: {error}): set {ENVIRONMENT} to the attempt.json "
                "that the worker wrote"
            ) from error

    @classmethod
    def _from_record(cls, raw: Mapping[str, Any]) -> AttemptContext:
        program, resume = raw["program"], raw.get("resume")
        return cls(
            job=str(raw["job"]),
            attempt=int(raw["attempt"]),
            name=str(raw["name"]),
            slot=str(raw["slot"]),
            params=dict(raw.get("params") or {}),
            attempt_dir=Path(raw["attempt_dir"]),
            journal=Path(raw["journal"]),
            page=Path(raw["page"]),
            work_dir=Path(raw["work_dir"]),
            files_dir=Path(raw["files_dir"]),
            checkpoints_dir=Path(raw["checkpoints_dir"]),
            program=Program(kind=program["kind"], target=program["target"], argv=tuple(program.get("argv") or ())),
            resume=None
            if resume is None
            else tuple(ResumePoint(name=p["name"], step=int(p["step"]), digest=p.get("digest")) for p in resume),
            threads=int(raw.get("threads") or 1),
            gpu_uuid=raw.get("gpu_uuid"),
            journal_max_bytes=int(raw.get("journal_max_bytes") or MAX_BYTES),
        )

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write the context to `path`, as a whole."""
        record = {
            "v": VERSION,
            "job": self.job,
            "attempt": self.attempt,
            "name": self.name,
            "slot": self.slot,
            "params": dict(self.params),
            "attempt_dir": str(self.attempt_dir),
            "journal": str(self.journal),
            "page": str(self.page),
            "work_dir": str(self.work_dir),
            "files_dir": str(self.files_dir),
            "checkpoints_dir": str(self.checkpoints_dir),
            "program": {"kind": self.program.kind, "target": self.program.target, "argv": list(self.program.argv)},
            "resume": None
            if self.resume is None
            else [{"name": p.name, "step": p.step, "digest": p.digest} for p in self.resume],
            "threads": self.threads,
            "gpu_uuid": self.gpu_uuid,
            "journal_max_bytes": self.journal_max_bytes,
        }
        write_whole(Path(path), encode.dumps(record))
