"""A run outside of a job: prints its progress, keeps files and checkpoints under `.trackside/<script name>/`."""

from __future__ import annotations

import atexit
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from trackside.sdk.page import ControlPage
from trackside.sdk.run import Run

_EVERY_S: Final = 0.5  # two lines a second are as many as a person reads


class Terminal:
    """Prints records: metrics at most twice a second and always the last, the others at once."""

    trouble = 0

    def __init__(self, root: Path) -> None:
        self._root = root
        self._printed_s = float("-inf")
        self._held: str | None = None
        self._total: int | None = None
        self._restored = 0

    def write(self, record: Mapping[str, Any]) -> None:
        line = self._line(record)
        if line is not None:
            self._print_held()
            print(line, flush=True)

    def metrics(self, step: int, values: Mapping[str, Any], time_ms: int) -> None:
        del time_ms  # a terminal shows things as they happen
        of = f"/{self._total}" if self._total is not None else ""
        shown = "  ".join(
            f"{key} {value:.6g}" if type(value) is float else f"{key} {value}" for key, value in values.items()
        )
        self._held = f"step {step}{of}  {shown}"
        now_s = time.monotonic()
        if now_s - self._printed_s >= _EVERY_S:
            self._printed_s = now_s
            self._print_held()

    def close(self) -> None:
        """Print the last metrics if they were held back."""
        self._print_held()

    def _print_held(self) -> None:
        if self._held is not None:
            print(self._held, flush=True)
            self._held = None

    def _line(self, record: Mapping[str, Any]) -> str | None:
        kind = record["k"]
        if kind == "begin":
            self._total = record["total"]
            if self._total is not None and record["from"] > self._total:
                return f"all {self._total} steps are done: remove {self._root} to start again"
            return None
        if kind == "restored":
            return f"resumed after step {record['s']}: remove {self._root} to start from step 1"
        if kind == "damaged":
            return f"checkpoint {record['name']} is damaged and was moved aside: {record['why']}"
        if kind == "summary":
            return "  ".join(f"{key} = {value}" for key, value in record["m"].items())
        if kind == "note":
            return f"{record['level']}: {record['text']}"
        return None


def local_run(name: str | None, params: Mapping[str, Any]) -> Run:
    """A run that prints; its folder is named after `name`, else after the script."""
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] not in ("", "-", "-c", "-m") else ""
    name = name or script or "run"
    folder = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "run"
    root = Path(".trackside") / folder
    run = Run(
        id=folder,
        attempt=1,
        name=name,
        params=params,
        files_dir=(root / "files").absolute(),
        checkpoints_dir=(root / "checkpoints").absolute(),
        sink=Terminal(root),
        page=ControlPage.in_memory(),
        resume=None,
    )
    atexit.register(run.close)
    return run
