"""Keeps a slot from work that its host's disk would not take.

An attempt that could not be written down here is handed back, and comes to this slot again if nothing is said. So the
worker takes nothing more until there is room again, and its beat says why.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trackside.sdk import disk

_LOOK_S: Final = 1.0
_ROOM_BYTES: Final = 1 << 20
_ROOM_MAX_BYTES: Final = 1 << 30


class DiskGate:
    """Open until the disk of one of the folders fails."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.words: str | None = None  # why the slot takes nothing, for people; None: it does
        self._folders = folders
        self._room_bytes = _ROOM_BYTES // 2
        self._next_s = 0.0

    def close(self, error: OSError) -> None:
        """Something could not be written: nothing more comes in before there is room, each time for twice as much."""
        self._room_bytes = min(2 * self._room_bytes, _ROOM_MAX_BYTES)
        self._next_s = time.monotonic() + _LOOK_S
        self._say(error)

    def held(self) -> None:
        """An attempt was written down: what is needed is judged anew."""
        self._room_bytes = _ROOM_BYTES // 2

    def passes(self) -> bool:
        """Whether work may come in; looks at the disk now and then while it may not."""
        if self.words is not None and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _LOOK_S
            try:
                for folder in self._folders:
                    _take_room(folder, self._room_bytes)
            except OSError as error:
                self._say(error)
            else:
                self.words = None
        return self.words is None

    def _say(self, error: OSError) -> None:
        why = os.strerror(error.errno) if error.errno is not None else str(error)
        self.words = f"its host's disk takes nothing ({why}): {disk.remedy(error.errno)}"


def _take_room(folder: Path, size_bytes: int) -> None:
    """Raise OSError unless the folder's disk has that much."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
