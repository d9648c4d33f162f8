"""The journal: an attempt's flight recorder, JSON lines in one append-only file.

Each record is one `os.write` to an O_APPEND descriptor: what `write` has returned from survives SIGKILL of the
process, and lines of several threads or forked children never mix. A write that a full disk cut short is closed by
a newline before the next one, so that it damages one line at most; a reader takes whole lines only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trackside.sdk import encode

MAX_BYTES: Final = 1 << 30  # a run that logs 100 bytes a step reaches this after ten million steps
_READ_BYTES: Final = 1 << 20
_THINNED: Final = 100  # beyond the bound one metrics line of so many is kept


def now_ms() -> int:
    """Milliseconds since the epoch, as every record carries them in `t`."""
    return time.time_ns() // 1_000_000


class JournalWriter:
    """Appends records; never raises for a disk that is full, but counts and tells what was lost."""

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._fd).st_size
        self._torn = self._size > 0 and os.pread(self._fd, 1, self._size - 1) != b"\n"
        self._max_bytes = max_bytes
        self._lost = 0  # records since the last one that reached the file
        self._thinning = 0  # metrics lines seen beyond the bound

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; False when the disk did not take it."""
        return self._append(encode.dumps_line(record))

    def metrics(self, step: int, values: Mapping[str, Any], time_ms: int) -> bool:
        """Append one metrics record; beyond the journal's bound only one of a hundred is kept, and a note says so."""
        if self._size > self._max_bytes and not self._keep():
            return False
        return self._append(encode.dumps_line({"k": "m", "s": step, "t": time_ms, "m": values}))

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: bytes) -> bool:
        if self._torn or self._lost:
            line = self._mend(line)
        try:
            written = os.write(self._fd, line)
        except OSError:
            self._lost += 1
            return False
        self._size += written
        if written != len(line):
            self._torn = True
            self._lost += 1
            return False
        self._torn, self._lost = False, 0
        return True

    def _mend(self, line: bytes) -> bytes:
        """Put before `line` what closes a torn line and owns up to what was lost."""
        head = b"\n" if self._torn else b""
        if self._lost:
            text = f"{self._lost} journal records were lost, the disk did not take them: free space on it"
            head += encode.dumps_line({"k": "note", "t": now_ms(), "level": "warning", "text": text})
        return head + line

    def _keep(self) -> bool:
        if self._thinning == 0:
            text = (
                f"the journal has reached {self._max_bytes} bytes: from here one metrics record of {_THINNED} is kept; "
                "log less often"
            )
            self.write({"k": "note", "t": now_ms(), "level": "warning", "text": text})
        self._thinning += 1
        return self._thinning % _THINNED == 1


class JournalReader:
    """Reads a journal as it grows, from any offset that it gave before."""

    def __init__(self, path: str | os.PathLike[str], offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset  # end of the last line that was yielded or passed over
        self.damaged_lines = 0  # whole lines that are no record

    def read(self, max_records: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset after the line, record) for each whole line that is there; none when there is no file yet."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        given = 0
        with file:
            file.seek(self.offset)
            rest = b""
            while chunk := file.read(_READ_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self.offset += len(line) + 1
                    record = self._record(line)
                    if record is None:
                        continue
                    yield self.offset, record
                    given += 1
                    if given == max_records:
                        return

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return self.read()

    def _record(self, line: bytes) -> dict[str, Any] | None:
        if not line:
            return None
        try:
            record = encode.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("k"), str):
            self.damaged_lines += 1
            return None
        return record
