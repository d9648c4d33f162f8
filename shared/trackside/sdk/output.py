"""Output that a full disk does not turn into an error of the training."""

from __future__ import annotations

import io
import sys
from typing import Any

from trackside.sdk import disk


class Unfailing(io.FileIO):
    """A file whose writes are dropped where the disk does not take them, as the journal's are."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno not in disk.FAILING:
                raise
            return memoryview(data).nbytes


def keep_printing() -> None:
    """Let stdout and stderr be written line by line, and never fail for a full disk; for the attempt's own process."""
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        try:
            old.flush()
            raw = Unfailing(old.fileno(), "w", closefd=False)
        except (AttributeError, OSError, ValueError):  # it has none, or was replaced by something that is no file
            continue
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
