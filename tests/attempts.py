"""Attempts as their worker would hand them to their processes, for tests that start one by themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trackside.sdk.context import AttemptContext, Program, ProgramKind
from trackside.sdk.journal import JournalReader
from trackside.sdk.page import ControlPage

LIMIT_S = 30.0


def context(folder: Path, number: int = 1, *, root: Path | None = None, **fields: Any) -> AttemptContext:
    """The context of attempt `number` in `folder`; what attempts share lies in `root`, by default in `folder` too."""
    shared = root or folder
    known: dict[str, Any] = {
        "job": "digits-1",
        "name": "digits",
        "slot": "host-cpu0",
        "params": {},
        "attempt_dir": folder,
        "journal": folder / "journal.jsonl",
        "page": folder / "page",
        "work_dir": shared / "work",
        "files_dir": folder / "files",
        "checkpoints_dir": shared / "checkpoints",
        "program": Program(kind="script", target="train.py"),
    }
    return AttemptContext(attempt=number, **{**known, **fields})


def records(journal: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a journal, or those of one kind."""
    return [record for _, record in JournalReader(journal) if kind is None or record["k"] == kind]


@dataclass(kw_only=True)
class Attempt:
    """One attempt in a folder of its own."""

    context: AttemptContext
    process: subprocess.Popen[str] | None = None

    @property
    def page(self) -> ControlPage:
        return ControlPage.open(self.context.page)

    def start(self) -> Attempt:
        ControlPage.create(self.context.page)
        path = self.context.attempt_dir / "attempt.json"
        self.context.to_file(path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trackside.sdk.runner"],
            env={**os.environ, "TRACKSIDE_ATTEMPT": str(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def send(self, number: int) -> None:
        """Send its process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err

    def records(self, kind: str) -> list[dict[str, Any]]:
        return records(self.context.journal, kind)

    @property
    def outcome(self) -> str | None:
        ends = self.records("end")
        assert len(ends) <= 1
        return ends[0]["outcome"] if ends else None

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = self.records("end")[0]["error"]
        return found


class Attempts:
    """The attempts of one test, numbered as they are made, with one work folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Attempt] = []
        (root / "work").mkdir()

    def write(self, name: str, code: str) -> None:
        path = self.root / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def make(self, kind: ProgramKind, target: str, *argv: str, params: Mapping[str, Any] | None = None) -> Attempt:
        folder = self.root / str(len(self.made) + 1)
        folder.mkdir()
        program = Program(kind=kind, target=target, argv=argv)
        attempt = Attempt(
            context=context(folder, len(self.made) + 1, root=self.root, params=params or {}, program=program)
        )
        self.made.append(attempt)
        return attempt

    def script(self, code: str, *argv: str) -> Attempt:
        self.write("train.py", code)
        return self.make("script", "train.py", *argv).start()
