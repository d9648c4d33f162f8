"""The ledger: what the leading supervisor keeps on its own disk to restore the records of a server that lost some.

    <home>/ledger/<pid>-<started>.jsonl     one writer a file, one JSON object a line, only ever appended to
    <home>/ledger/snapshots/<sha256>        submitted folders, copied once
    <home>/ledger/lock                      held while files are put together

1. A leader opens the ledger: all files are read, the one that came furthest last, put together into a new one of its
   own, and removed. Whoever wrote one of them and still lives, as a leader that was frozen, writes into a removed file.
2. What changed is appended in one write: the records first, how far the events were taken in last. So whatever byte
   the process dies at, the file never claims more than it has; a line that was cut short is dropped.
3. It is put together anew when it has grown to a multiple of what it holds. Jobs that ended are kept up to a number.

What stands here is only ever written back to a server that has less (`older.py`), never believed before the server.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from trackside import logs
from trackside.codec import decode, encode
from trackside.errors import DecodeError
from trackside.models import Attempt, AttemptState, Breaker, Event, Job, Slot
from trackside.wholefile import write_whole

ENDED_KEPT: Final = 1000  # jobs, those that ended last
_GROWN_BYTES: Final = 8 * 1024 * 1024  # a file smaller than this is not worth putting together anew
_GROWN_FACTOR: Final = 3
_SYNC_S: Final = 1.0  # what a power cut may take; a killed process loses nothing that was written


@dataclass(kw_only=True, slots=True)
class Kept:
    """One job as the ledger has it."""

    job: Job
    attempts: dict[int, Attempt] = field(default_factory=dict)
    history: list[tuple[str, Event]] = field(default_factory=list)  # with the ids of the job's history, in order

    @property
    def first_open(self) -> int:
        """The number of the first attempt that may have changed since: an ended one does not any more."""
        number = 1
        while (attempt := self.attempts.get(number)) is not None and attempt.state is AttemptState.ENDED:
            number += 1
        return number

    @property
    def last_id(self) -> str:
        return self.history[-1][0] if self.history else "0-0"


class Ledger:
    """An open ledger. Raises OSError where the disk does not take it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cursor: str | None = None  # the newest event that was taken in; None: nothing yet
        self.jobs: dict[str, Kept] = {}
        self.slots: tuple[Slot, ...] = ()
        self.away: tuple[Slot, ...] = ()  # cordoned ones that left in order: they are cordoned when they return
        self.breakers: tuple[Breaker, ...] = ()
        self.writes = True  # False: the disk does not take it, so all is kept here alone for now
        self._path = folder / f"{os.getpid()}-{time.time_ns()}.jsonl"
        self._fd: int | None = None
        self._size = self._whole_size = 0
        self._synced_s = 0.0

    @classmethod
    def open(cls, folder: Path) -> Ledger:
        """The ledger in this folder, with all that earlier writers left; a new one where there is none."""
        ledger = cls(folder)
        ledger._make_folder()
        with ledger._locked():
            for cut_short in folder.glob("*.tmp"):  # whoever writes one holds the lock
                cut_short.unlink(missing_ok=True)
            old = ledger._load_all()
            ledger._write_whole()
            for path in old:
                path.unlink(missing_ok=True)
        return ledger

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The ledger in this folder where the disk takes nothing: it changes no file until it is written again."""
        ledger = cls(folder)
        ledger.writes = False
        ledger._load_all()
        return ledger

    # -- reading ---------------------------------------------------------------------------------------------------

    def live(self) -> list[Job]:
        """The jobs that had not ended."""
        return [kept.job for kept in self.jobs.values() if not kept.job.state.terminal]

    def snapshot(self, sha256: str) -> bytes | None:
        """A submitted folder's archive, None if it was never copied."""
        try:
            return self._snapshot_path(sha256).read_bytes()
        except FileNotFoundError:
            return None

    def has_snapshot(self, sha256: str) -> bool:
        return self._snapshot_path(sha256).exists()

    # -- writing ---------------------------------------------------------------------------------------------------

    def keep_snapshot(self, sha256: str, data: bytes) -> None:
        """Copy an archive, as a whole, so that half a one is never taken for it."""
        write_whole(self._snapshot_path(sha256), data)

    def append(
        self,
        jobs: Iterable[Kept] = (),
        *,
        slots: tuple[Slot, ...] | None = None,
        away: tuple[Slot, ...] | None = None,
        breakers: tuple[Breaker, ...] | None = None,
        cursor: str | None = None,
    ) -> None:
        """Take in what is new: for each job its record, the attempts that changed and the events since the last time.

        Slots and breakers are whole lists, None where nothing is to be said about them.
        """
        lines = [line for kept in jobs for line in self._news(kept)]
        if slots is not None and slots != self.slots:
            lines.append(_line("slots", r=[orjson.Fragment(encode(slot)) for slot in slots]))
        if away is not None and away != self.away:
            lines.append(_line("away", r=[orjson.Fragment(encode(slot)) for slot in away]))
        if breakers is not None and breakers != self.breakers:
            lines.append(_line("breakers", r=[orjson.Fragment(encode(breaker)) for breaker in breakers]))
        if cursor is not None and cursor != self.cursor:
            lines.append(_line("at", id=cursor))
        if not lines:
            return
        for line in lines:
            self._apply(line)
        if self.writes:
            self._write(b"".join(lines))

    def suspend(self) -> None:
        """Keep all that comes here alone, after the disk did not take it; the files stay as they are."""
        self.writes = False
        self.close()

    def write_again(self) -> None:
        """Write all that is known, after a time without a disk; raises OSError where it does not take it yet."""
        self._make_folder()
        with self._locked():
            self._write_whole()
        self.writes = True

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _news(self, new: Kept) -> Iterator[bytes]:
        old = self.jobs.get(new.job.id)
        if old is None or old.job != new.job:
            yield _line("job", r=orjson.Fragment(encode(new.job)))
        for number, attempt in new.attempts.items():
            if old is None or old.attempts.get(number) != attempt:
                yield _line("attempt", r=orjson.Fragment(encode(attempt)))
        last = old.last_id if old is not None else "0-0"
        for entry, event in new.history:
            if _order(entry) > _order(last):
                yield _line("event", id=entry, r=orjson.Fragment(encode(event)))

    def _write(self, data: bytes) -> None:
        if self._fd is None or os.fstat(self._fd).st_nlink == 0:  # somebody else put all files together meanwhile
            with self._locked():
                self._write_whole()
            return
        if os.write(self._fd, data) != len(data):
            raise OSError(f"the disk of {self.folder} is full")
        self._size += len(data)
        if time.monotonic() - self._synced_s >= _SYNC_S:
            self._synced_s = time.monotonic()
            os.fdatasync(self._fd)
        if self._size > max(_GROWN_BYTES, _GROWN_FACTOR * self._whole_size):
            with self._locked():
                self._write_whole()

    def _write_whole(self) -> None:
        """Write all that is known into a new file in this one's place."""
        self._forget()
        aside = self._path.with_suffix(".tmp")
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            data = b"".join(self._all_lines())
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
            aside.rename(self._path)
        except OSError:
            os.close(fd)
            _remove(aside)  # on a full disk it would be one more each time
            raise
        self.close()
        self._fd, self._size, self._whole_size, self._synced_s = fd, len(data), len(data), time.monotonic()

    def _all_lines(self) -> Iterator[bytes]:
        for kept in self.jobs.values():
            yield _line("job", r=orjson.Fragment(encode(kept.job)))
            for attempt in kept.attempts.values():
                yield _line("attempt", r=orjson.Fragment(encode(attempt)))
            for entry, event in kept.history:
                yield _line("event", id=entry, r=orjson.Fragment(encode(event)))
        yield _line("slots", r=[orjson.Fragment(encode(slot)) for slot in self.slots])
        yield _line("away", r=[orjson.Fragment(encode(slot)) for slot in self.away])
        yield _line("breakers", r=[orjson.Fragment(encode(breaker)) for breaker in self.breakers])
        if self.cursor is not None:
            yield _line("at", id=self.cursor)

    def _forget(self) -> None:
        """Drop what is beyond the bound: jobs that ended before the last ones, and snapshots that no job needs."""
        ended = [kept.job for kept in self.jobs.values() if kept.job.state.terminal]
        ended.sort(key=lambda job: job.ended_at_ms or 0, reverse=True)
        for job in ended[ENDED_KEPT:]:
            del self.jobs[job.id]
        needed = {kept.job.spec.snapshot for kept in self.jobs.values()}
        for path in (self.folder / "snapshots").iterdir():
            if path.name not in needed:
                path.unlink(missing_ok=True)

    # -- files -----------------------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        (self.folder / "snapshots").mkdir(parents=True, exist_ok=True, mode=0o700)

    def _load_all(self) -> list[Path]:
        """Take in all that earlier writers left, the one that came furthest last."""
        old = sorted(self.folder.glob("*.jsonl"), key=lambda path: _order(_last_cursor(path)))
        for path in old:
            self._load(path)
        return old

    def _load(self, path: Path) -> None:
        dropped = 0
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or not self._apply(line):
                dropped += 1
        if dropped:
            logs.get().info("ledger_lines_dropped", file=path.name, lines=dropped)

    def _apply(self, line: bytes) -> bool:
        """Take one line in; False for one that cannot be read."""
        try:
            found = orjson.loads(line)
            raw = orjson.dumps(found["r"]) if isinstance(found.get("r"), dict) else b""
            match found["k"]:
                case "job":
                    job = decode(Job, raw)
                    known = self.jobs.get(job.id)
                    if known is None:
                        self.jobs[job.id] = Kept(job=job)
                    else:
                        known.job = job
                case "attempt":
                    attempt = decode(Attempt, raw)
                    self.jobs[attempt.job].attempts[attempt.number] = attempt
                case "event":
                    event = decode(Event, raw)
                    kept = self.jobs[event.job or ""]
                    if _order(found["id"]) > _order(kept.last_id):
                        kept.history.append((found["id"], event))
                case "slots":
                    self.slots = tuple(decode(Slot, orjson.dumps(each)) for each in found["r"])
                case "away":
                    self.away = tuple(decode(Slot, orjson.dumps(each)) for each in found["r"])
                case "breakers":
                    self.breakers = tuple(decode(Breaker, orjson.dumps(each)) for each in found["r"])
                case "at":
                    _order(found["id"])
                    self.cursor = found["id"]
        except (ValueError, KeyError, TypeError, AttributeError, DecodeError):
            return False
        return True

    def _snapshot_path(self, sha256: str) -> Path:
        return self.folder / "snapshots" / sha256

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _order(entry: str | None) -> tuple[int, int]:
    """An event's id as it sorts."""
    if entry is None:
        return (-1, -1)
    at_ms, _, sequence = entry.partition("-")
    return int(at_ms), int(sequence)


def _last_cursor(path: Path) -> str | None:
    """How far a file came, by its last whole line that says so."""
    for line in reversed(path.read_bytes().splitlines(keepends=True)):
        try:
            found: Any = orjson.loads(line) if line.endswith(b"\n") else None
            if found is not None and found["k"] == "at":
                _order(found["id"])
                return str(found["id"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _line(kind: str, **fields: Any) -> bytes:
    return orjson.dumps({"k": kind, **fields}, option=orjson.OPT_APPEND_NEWLINE)
