"""The journal: an attempt's flight recorder, JSON lines in one append-only file.

Each record is one `os.write` to an O_APPEND descriptor: what `write` has returned from survives SIGKILL of the
process, and lines of several threads or forked children never mix. A write that a full disk cut short is closed by
a newline before the next one, so that it damages one line at most; a reader takes whole lines only.

Its size is bounded by thinning, not by rotating: beyond the bound only metrics are left out, whole steps at a time, and
notes say from where on and, at the end, how many. What happened to the run is always written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trackside.sdk import encode

MAX_BYTES: Final = 1 << 30  # a run that logs 100 bytes a step reaches this after ten million steps
NUMBERS: Final = b'{"k":"m",'  # how a line of metrics begins
_READ_BYTES: Final = 1 << 20
_THINNED: Final = 101  # beyond the bound the metrics of one step of so many are kept: a prime, for logs that take turns
_HIGH_FD: Final = 1000  # the usual limit is 1024
_A_STEP: Final = 1000  # records; a script that never says which step it is at logs all of them at one


def now_ms() -> int:
    """Milliseconds since the epoch, as every record carries them in `t`."""
    return time.time_ns() // 1_000_000


class JournalWriter:
    """Appends records; never raises for a disk that is full, but counts and tells what was lost."""

    def __init__(self, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> None:
        self.path = Path(path)
        self.trouble = 0  # the error number for which a record was lost most recently
        self._fd = _high(os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644))
        self._size = os.fstat(self._fd).st_size
        self._torn = self._size > 0 and os.pread(self._fd, 1, self._size - 1) != b"\n"
        self._max_bytes = max_bytes
        self._lost = 0  # records since the last one that reached the file
        self._thinning = 0  # steps seen beyond the bound
        self._thinned_step: int | None = None  # the newest of them
        self._left_out = 0  # metrics records
        self._held: deque[tuple[int, Mapping[str, Any], int]] = deque(maxlen=_A_STEP)  # left out, of the newest step
        self._in_step = 0  # records of that step beyond the bound

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; False when the disk did not take it."""
        if self._left_out and record["k"] == "end":
            self._own_up()
        return self._append(encode.dumps_line(record))

    def metrics(self, step: int, values: Mapping[str, Any], time_ms: int) -> bool:
        """Append one metrics record; beyond the journal's bound only those of a few steps."""
        if self._size > self._max_bytes and not self._keep(step):
            self._left_out += 1
            self._held.append((step, values, time_ms))
            return False
        return self._metrics(step, values, time_ms)

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
        except OSError as error:
            self.trouble = error.errno or 0
            self._lost += 1
            return False
        self._size += written
        if written != len(line):
            self.trouble = errno.ENOSPC  # a short write comes without a number, and mostly of a disk that is full
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

    def _metrics(self, step: int, values: Mapping[str, Any], time_ms: int) -> bool:
        return self._append(encode.dumps_line({"k": "m", "s": step, "t": time_ms, "m": values}))

    def _keep(self, step: int) -> bool:
        """Whether a step's metrics are kept: all of its records or none, so that no name is left out for good."""
        if self._thinning == 0:
            self._note(
                f"the journal has reached its bound of {self._max_bytes} bytes: from step {step} on the metrics of one "
                f"step in {_THINNED} are kept; log less often, or raise TRACKSIDE_JOURNAL_MAX_BYTES"
            )
        if step != self._thinned_step:
            self._thinned_step = step
            self._thinning += 1
            self._in_step = 0
            self._held.clear()
        self._in_step += 1
        return self._thinning % _THINNED == 1 and (self._in_step <= _A_STEP or self._in_step % _THINNED == 0)

    def _own_up(self) -> None:
        """Write what the last step gave, and how much was left out in all."""
        left_out, self._left_out = self._left_out - len(self._held), 0
        for step, values, time_ms in self._held:
            self._metrics(step, values, time_ms)
        self._note(
            f"{left_out} metrics records were left out, as the journal had reached its bound of {self._max_bytes} "
            "bytes: log less often, or raise TRACKSIDE_JOURNAL_MAX_BYTES"
        )

    def _note(self, text: str) -> None:
        self._append(encode.dumps_line({"k": "note", "t": now_ms(), "level": "warning", "text": text}))


def _high(fd: int) -> int:
    """The same under a number that `open` does not give again where a script closes all that it does not know."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:  # the limit is lower than that
        return fd
    os.close(fd)
    return high


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
