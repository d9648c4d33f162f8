"""An attempt as its worker would hand it to its process, for tests that start one by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trackside.sdk.context import AttemptContext, Program
from trackside.sdk.journal import JournalReader


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
