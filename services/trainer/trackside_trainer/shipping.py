"""An attempt's journal and output on their way to the bus, exactly once, whoever carries them.

No state is kept but the files and the streams: an entry's id says up to which byte the stream has the file, so a new
worker, or the agent after a worker's death, asks for the last id and goes on from there. After an error the stream is
asked again before anything is sent: an entry whose reply was lost is sent once more under its own id, and refused if
it had arrived; what a restarted server has lost is read from the file again.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from trackside.bus import keys, streams
from trackside.bus.client import Client
from trackside.bus.streams import Shipped
from trackside.checkpointrecords import OnDisk
from trackside.codec import decode, encode
from trackside.errors import Fenced
from trackside.models import Batch, CheckpointRef, EventKind
from trackside.sdk.checkpoints import parse_name
from trackside.sdk.encode import dumps_line
from trackside.sdk.journal import NUMBERS, JournalReader
from trackside.store import Store
from trackside_trainer.batches import MAX_BYTES, MAX_WHOLE, BatchBuilder, whole
from trackside_trainer.spacing import ENOUGH_BYTES, wait_s

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a directory beside others, and nothing else
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES: Final = 64 * 1024
_RECORD_MAX_BYTES: Final = 1024 * 1024
_NOTE_MAX_CHARS: Final = 2_000
_TAIL_BYTES: Final = 256 * 1024  # an end line holds a traceback of 32,000 characters at most


class Tail(Protocol):
    """A file of an attempt that is followed to the bus."""

    def ship(self) -> bool:
        """Send one entry if there is something to send; whether there was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    start: int
    end: int
    data: bytes


class _FencedStream:
    """The part that journal and output share: where the stream stands, and the entry that is on its way."""

    def __init__(
        self, client: Client, stream: str, number: int, send: Callable[[int, bytes], Shipped], limit: int
    ) -> None:
        """`limit`: how many entries the stream keeps."""
        self._client, self._stream, self._number, self._send, self._limit = client, stream, number, send, limit
        self._entries: int | None = None  # about how many there are; None: ask
        self._sent_s = -math.inf
        self._connections = client.connections
        self._reached: int | None = None  # None: ask the stream
        self._asked = -1  # behind which connection
        self._pending: _Entry | None = None

    def reached(self) -> int:
        """Up to which byte the stream has the file; raises Fenced when a newer attempt owns the stream."""
        made = self._connections.settle()
        if self._reached is None or self._asked != made:  # a new connection: the server may have come back older
            found = streams.last_sequence(self._client, self._stream, self._number)
            if found is None:
                raise Fenced(f"{self._stream} belongs to a newer attempt than {self._number}")
            if self._pending is not None and found != self._pending.start:
                self._pending = None  # it had arrived, or the server lost more than this entry
            self._reached, self._asked = found, made
        return self._reached

    @property
    def pending(self) -> bool:
        return self._pending is not None

    def waits(self) -> bool:
        """Whether a small entry is to wait for more, lest the stream be full before the run is over."""
        if self._entries is None:
            self._entries = int(self._client.xlen(self._stream))
        return time.monotonic() - self._sent_s < wait_s(self._entries, self._limit)

    def ship(self, entry: _Entry | None) -> None:
        """Send an entry, or the one that failed before (None)."""
        entry = self._pending = entry or self._pending
        if entry is None:
            return
        self._reached = None  # until the reply is here nothing is known
        if self._send(entry.end, entry.data) is Shipped.FENCED:
            raise Fenced(f"{self._stream} belongs to a newer attempt than {self._number}")
        self._reached, self._pending = entry.end, None
        self._sent_s = time.monotonic()
        if self._entries is not None:
            self._entries += 1


class JournalTail:
    """Follows the journal: points become batches, and what the records say becomes facts in the store."""

    def __init__(
        self,
        store: Store,
        job_id: str,
        number: int,
        path: Path,
        storage: str,
        *,
        on_accepted: Callable[[int], None] = lambda _: None,
        more_comes: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_accepted` is told the step that a next attempt would go on from, each time that is known anew.

        While `more_comes` a few numbers may wait for company; what says more than that never does.
        """
        self._store, self._job, self._number, self._path, self._storage = store, job_id, number, path, storage
        self._on_accepted, self._more_comes = on_accepted, more_comes
        self._only_numbers = (0, 0)  # from the first byte that waits to the last one that was looked at
        self._checkpoints = path.parents[2] / "checkpoints"  # beside the folder of all attempts
        self._told = 0  # up to which byte the records' facts have been told once
        self._left_out: set[str] = set()  # the kinds of records of which it has been told
        client = store.client
        self._stream = _FencedStream(
            client,
            keys.metrics(job_id),
            number,
            lambda end, data: streams.ship_batch(client, job_id, number, end, decode(Batch, data)),
            keys.METRICS_MAXLEN,
        )

    def ship(self) -> bool:
        reached = self._stream.reached()
        if self._stream.pending:
            self._stream.ship(None)
            return True
        size = _size(self._path)
        if size <= reached or (self._more_comes() and self._may_wait(reached, size) and self._stream.waits()):
            return False
        builder, end = BatchBuilder(), reached
        for after, record in JournalReader(self._path, reached).read():
            again = after <= self._told
            size = after - end
            if size > _RECORD_MAX_BYTES:
                size = len(dumps_line(record))  # damaged lines may have come before it
            if size <= _RECORD_MAX_BYTES:
                self._tell(record, again=again)
                builder.add(record)
            elif not again:
                self._tell_large(record, size)
            self._told = max(self._told, after)
            end = after
            if builder.full or end - reached >= MAX_BYTES:
                break
        if end == reached:
            return False
        # The facts above are told before the entry that marks them as read: told twice is harmless, never is not.
        self._stream.ship(_Entry(start=reached, end=end, data=encode(builder.build())))
        return True

    def _may_wait(self, reached: int, size: int) -> bool:
        """Whether what is not sent yet is a few numbers and nothing else."""
        if size - reached >= ENOUGH_BYTES:
            return False
        start = self._only_numbers[1] if self._only_numbers[0] == reached else reached
        with self._path.open("rb") as file:
            lines = os.pread(file.fileno(), size - start, start).split(b"\n")
        whole_lines = lines[:-1]
        if not all(line.startswith(NUMBERS) for line in whole_lines):
            return False
        self._only_numbers = (reached, start + sum(len(line) + 1 for line in whole_lines))
        return True

    def _tell(self, record: dict[str, Any], *, again: bool) -> None:
        """Tell the store; `again`, since the server had lost it: only what it needs, and takes once anyway."""
        store, job, number = self._store, self._job, self._number
        match record["k"]:
            case "ck":
                self._tell_checkpoint(record)
            case "damaged":
                self._tell_damaged(record, again=again)
            case "end":
                on_disk = self._on_disk()
                if on_disk is not None:
                    store.note_pruned(job, number, on_disk)
            case _ if again:
                pass
            case "begin":
                total, first = whole(record.get("total")), whole(record.get("from"))
                store.note_attempt(job, number, EventKind.NOTE, "begin", total_steps=total, first_step=first)
            case "restored":
                name, step = _text(record.get("name")), whole(record.get("s"))
                store.note_restored(job, number, name, step, self._on_disk())
                if step is not None:
                    self._on_accepted(step)
            case "note":
                level, text = _text(record.get("level")), _text(record.get("text"))
                store.note_attempt(job, number, EventKind.NOTE, "note", level=level, text=text)
            case "m" if whole(record.get("s")) is None:
                words = f"what was logged at step {record.get('s')} is in the journal only, as at each such step"
                self._tell_left_out("step", f"{words}: a step is a whole number of {MAX_WHOLE} at most")

    def _tell_large(self, record: dict[str, Any], size: int) -> None:
        kind = record["k"]
        what = f"metrics of step {record.get('s')}" if kind == "m" else kind
        words = f"a record of {size} bytes ({what}) is in the journal only, as is each such of more than"
        self._tell_left_out(kind, f"{words} {_RECORD_MAX_BYTES} bytes: log fewer or smaller values at once")

    def _tell_left_out(self, kind: str, text: str) -> None:
        """Warn of the first of a kind: a script that logs one logs them at each step."""
        if kind not in self._left_out:
            text = text[:_NOTE_MAX_CHARS]
            self._store.note_attempt(self._job, self._number, EventKind.NOTE, "note", level="warning", text=text)
            self._left_out.add(kind)

    def _tell_checkpoint(self, record: dict[str, Any]) -> None:
        name, step, digest = record.get("name"), whole(record.get("s")), record.get("digest")
        if not isinstance(name, str) or not isinstance(digest, str) or step is None:
            return
        if not _NAME.fullmatch(name) or not _DIGEST.fullmatch(digest):
            return
        if not (self._checkpoints / name).is_dir():
            return  # pruned while the bus was out of reach: the record names only what is there
        found = CheckpointRef(
            name=name,
            step=step,
            attempt=self._number,
            digest=digest,
            storage=self._storage,
            bytes=whole(record.get("bytes")),
        )
        job = self._store.accept_checkpoint(self._job, self._number, found, self._on_disk())
        # Of the record, since an old line may be told again.
        self._on_accepted(max((ref.step for ref in job.checkpoints if ref.job is None), default=step))

    def _tell_damaged(self, record: dict[str, Any], *, again: bool) -> None:
        name, why = _text(record.get("name")), _text(record.get("why"))
        if name is None:
            return
        told = parse_name(name)
        adopted = told[0] if told is not None and told[1] == 0 else None  # another job's, linked into this one's folder
        self._store.note_damaged(self._job, self._number, name, why, adopted=adopted, again=again)

    def _on_disk(self) -> OnDisk | None:
        """What is in the folder of checkpoints, None where that cannot be told."""
        try:
            names = frozenset(path.name for path in self._checkpoints.iterdir() if path.is_dir())
        except OSError:
            return None
        return OnDisk(storage=self._storage, names=names)


class OutputTail:
    """Follows the output file, byte for byte, up to a bound; beyond it the file keeps all."""

    def __init__(
        self,
        client: Client,
        job_id: str,
        number: int,
        path: Path,
        max_bytes: int,
        *,
        more_comes: Callable[[], bool] = lambda: False,
    ) -> None:
        """While `more_comes` a little may wait for company."""
        self._path, self._max_bytes, self._more_comes = path, max_bytes, more_comes
        self._stream = _FencedStream(
            client,
            keys.output(job_id),
            number,
            lambda end, data: streams.ship_output(client, job_id, number, end, data),
            keys.OUTPUT_MAXLEN,
        )

    def ship(self) -> bool:
        reached = self._stream.reached()
        if self._stream.pending:
            self._stream.ship(None)
            return True
        size = _size(self._path)
        if size <= reached or reached > self._max_bytes:
            return False
        if self._more_comes() and size - reached < ENOUGH_BYTES and self._stream.waits():
            return False
        if reached == self._max_bytes:
            said = f"\n[output beyond {self._max_bytes} bytes is kept in {self._path} only]\n".encode()
            self._stream.ship(_Entry(start=reached, end=reached + 1, data=said))
            return True
        data = _piece(self._path, reached, min(_PIECE_BYTES, self._max_bytes - reached))
        if not data:
            return False
        self._stream.ship(_Entry(start=reached, end=reached + len(data), data=data))
        return True


def ship_for(budget_s: float, *tails: Tail) -> bool:
    """Send from each in turn until all have nothing or the time is up; whether there may be more."""
    deadline_s = time.monotonic() + budget_s
    more = True
    while more and time.monotonic() < deadline_s:
        more = sum(tail.ship() for tail in tails) > 0
    return more


def _piece(path: Path, start: int, limit: int) -> bytes:
    with path.open("rb") as file:
        data = os.pread(file.fileno(), limit, start)
    cut = data.rfind(b"\n") + 1
    return data[:cut] if len(data) == limit and cut else data  # a full piece ends with a line, if it holds one


def end_record(path: Path) -> dict[str, Any] | None:
    """The end line of a journal, None if the process died before it could write one, or if it cannot be read."""
    found: dict[str, Any] | None = None
    with suppress(OSError):
        for _, record in JournalReader(path, max(0, _size(path) - _TAIL_BYTES)):
            if record["k"] == "end":
                found = record
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _text(value: Any) -> str | None:
    return value[:_NOTE_MAX_CHARS] if isinstance(value, str) else None
