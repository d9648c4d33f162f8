"""The curves of a job's earlier attempts, written again from their journals to a server that has lost them.

A server that came back empty gets the running attempt's curves by itself: its shipper asks how far the stream is, and
begins anew. Those of the attempts before it stand in their journals, if they ran here. A fenced stream takes nothing
that is older than its last entry, so it is written aside as a whole and put in the place of the other in one
transaction, while this worker, the stream's only writer, ships nothing.

A stream that begins with no more than the opening of its first attempt tells nothing of that one either: so a rebuild
opens it for the newest attempt, also where that has ended. Whoever has shipped a line of its journal leaves an entry.

Of each attempt the steps are written that the next one did not do again: what came later may have been refused. Whoever
dies at this is followed by the next attempt, which begins anew: what is lost is told by the stream alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from trackside import logs
from trackside.bus import keys
from trackside.bus.client import Pipeline, ResponseError, WatchError
from trackside.codec import encode
from trackside.errors import BusError, NotFound, ServerBehind
from trackside.models import Attempt, Job
from trackside.sdk.journal import JournalReader
from trackside.store import Store, check_not_behind
from trackside_trainer.batches import BatchBuilder, whole
from trackside_trainer.folders import Folders

_TRIES: Final = 3  # the running attempt's own journal, with its checkpoints, waits for each


class EarlierCurves:
    """Sees to it that a job's metrics stream begins with its first attempts; `ship` until there is nothing to do."""

    def __init__(self, store: Store, job: Job, data: Path) -> None:
        self._store, self._client, self._data = store, store.client, data
        self._job, self._number = job.id, job.attempt
        self._begins_at = job.checkpoints[0].step if job.checkpoints else 0
        self._stream, self._aside = keys.metrics(job.id), keys.metrics_aside(job.id)
        self._looked = -1  # behind which connection
        self._writing: Iterator[None] | None = None
        self._failures = 0  # of writing, in a row

    def ship(self) -> bool:
        """Do one piece of it; whether there is more. Raises NotFound or ServerBehind while the record is missing."""
        if self._number == 1 or self._failures >= _TRIES:
            return False
        made = self._client.connections.settle()
        if self._looked == made and self._writing is None:
            return False
        if self._looked != made and self._writing is not None:
            self._writing = None
            if self._failed("the connection was lost again and again"):
                return False
        try:
            return self._ship_piece(made)
        except (NotFound, ServerBehind):  # it begins anew once the records are back
            self._looked, self._writing = -1, None
            raise
        except (BusError, ResponseError) as error:
            writing, self._looked, self._writing = self._writing, -1, None
            if writing is not None:
                self._failed(str(error))
            raise
        except (OSError, KeyError) as error:  # a journal cannot be read, or an attempt's record is missing
            self._writing, self._failures = None, _TRIES
            self._give_up(f"{type(error).__name__}: {error}")
            return False

    def _ship_piece(self, made: int) -> bool:
        if self._looked != made:
            self._writing = self._what_to_do()
            self._looked = made
        if self._writing is not None and next(self._writing, self) is self:
            self._writing, self._failures = None, 0
        return self._writing is not None

    def _failed(self, why: str) -> bool:
        """Whether this was the last try: what the running attempt has to tell is worth more than old curves."""
        self._failures += 1
        if self._failures < _TRIES:
            return False
        self._give_up(why)
        return True

    def _give_up(self, why: str) -> None:
        todo = "the curve shown begins with this attempt; those before it stand in `journal.jsonl` of their folders"
        logs.get().error("curves_not_written_again", job=self._job, attempt=self._number, why=why, todo=todo)
        with suppress(BusError, ResponseError):
            self._client.delete(self._aside)

    def _what_to_do(self) -> Iterator[None] | None:
        """Write what is lost, or remove what an attempt left that died at it; None if there is nothing to do."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.xrange(self._stream, count=2)
            pipe.xlen(self._stream)
            pipe.exists(self._aside)
            first, length, left = pipe.execute()
        last = self._last_missing([keys.parse_entry_id(entry) for entry, _ in first])
        # A longer stream has lost its beginning for its length.
        if last > 0 and length < keys.METRICS_MAXLEN:
            return self._write(last)
        return self._tidy() if left else None

    def _last_missing(self, first: list[tuple[int, int]]) -> int:
        """The newest attempt of which a stream that begins with these ids may lack points, 0 if there is none."""
        if not first:
            return self._number - 1
        begins, sequence = first[0]
        told = sequence > 0 or (len(first) > 1 and first[1][0] == begins)
        last = min(begins - told, self._number - 1)
        if last == 1 and _size(self._journal(1)) == 0:
            return 0  # it died before it had anything to tell
        return last

    def _journal(self, number: int) -> Path:
        return Folders(data=self._data, job=self._job, attempt=number).journal

    def _tidy(self) -> Iterator[None]:
        self._client.delete(self._aside)
        yield

    def _write(self, last: int) -> Iterator[None]:
        """Write the attempts up to that one."""
        job = self._store.job(self._job)
        check_not_behind(job, self._number)
        attempts = {attempt.number: attempt for attempt in self._store.attempts(job)}
        self._client.delete(self._aside)
        for number in range(1, last + 1):
            self._client.xadd(self._aside, {"open": str(number)}, id=keys.entry_id(number, 0))
            for end, builder in _batches(self._journal(number), self._last_step(attempts, number)):
                fields: Any = {b"d": encode(builder.build())}
                self._client.xadd(self._aside, fields, id=keys.entry_id(number, end))
                yield
        with self._client.pipeline() as pipe:
            self._put_in_place(pipe, last)
        logs.get().warning("curves_written_again", job=self._job, attempts=last)

    def _last_step(self, attempts: dict[int, Attempt], number: int) -> int:
        """Up to where an attempt's steps count: the next one that did any began behind it."""
        for later in range(number + 1, self._number):
            attempt = attempts[later]
            if attempt.resumed_step is not None or (attempt.outcome is not None and attempt.outcome.first_step):
                return attempt.resumed_step or 0
        return self._begins_at

    def _put_in_place(self, pipe: Pipeline, last: int) -> None:
        """Put what was written before the entries of the attempts after `last`."""
        pipe.watch(self._stream)
        own = cast(list[Any], pipe.xrange(self._stream, min=keys.entry_id(last + 1, 0)))
        pipe.multi()
        for entry, fields in own:
            pipe.xadd(self._aside, fields, id=entry)
        if not own:
            pipe.xadd(self._aside, {"open": str(self._number)}, id=keys.entry_id(self._number, 0))
        pipe.rename(self._aside, self._stream)
        try:
            pipe.execute()
        except WatchError:  # a newer attempt was opened: what is to be done is its worker's
            self._client.delete(self._aside)


def _batches(journal: Path, last_step: int) -> Iterator[tuple[int, BatchBuilder]]:
    """The points up to a step, and the results, with the byte up to which each batch brings the journal.

    Without any it is one empty batch, so that the stream tells that they were looked for.
    """
    builder, end, points = BatchBuilder(), 1, 0
    empty = True
    due = _due(journal, last_step)
    for after, record in JournalReader(journal):
        if record["k"] != "summary" and not _counts(record, last_step, done=after < due):
            continue
        builder.add(record)
        end, points = after, points + 1
        if builder.full:
            yield end, builder
            builder, points, empty = BatchBuilder(), 0, False
    if points or empty:
        yield end, builder


def _due(journal: Path, step: int) -> int:
    """The byte up to which a journal tells of what was done before the checkpoint of that step; 0 if it has none."""
    found = (after for after, record in JournalReader(journal) if record["k"] == "due" and record.get("s") == step)
    return next(found, 0)


def _counts(record: dict[str, Any], last_step: int, *, done: bool) -> bool:
    """Whether this is a point that was not done again, as is known (`done`) or else told by its number.

    A script may log on an axis of its own, such as of samples seen, whose numbers do not tell it.
    """
    step = whole(record.get("s"))
    return record["k"] == "m" and step is not None and (done or step <= last_step)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
