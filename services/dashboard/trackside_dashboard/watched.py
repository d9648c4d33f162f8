"""What is kept of one job: its metrics, and for its page also attempts, history and the ends of its outputs."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Final

from trackside.bus import keys, streams
from trackside.bus.client import Client
from trackside.models import Attempt, Batch, Event, Job
from trackside.store import Store
from trackside_dashboard.lines import Columns
from trackside_dashboard.snapshot import JobView, Latest

TAIL_BYTES: Final = 64 * 1024  # of one attempt's output
TAILS_MAX: Final = 4  # attempts of one job whose output is kept
HISTORY_MAX: Final = 2_000
_PIECES: Final = 400


def finite(value: float | None) -> float | None:
    """The value where it is a number that can be drawn."""
    return value if value is not None and math.isfinite(value) else None


class Series:
    """A job's metrics, and how far its stream was read."""

    def __init__(self) -> None:
        self.after = "0-0"
        self.columns = Columns()
        self.complete = False
        self.version = 0

    def take(self, entry: str, attempt: int, batch: Batch | None) -> None:
        self.after = entry
        self.version += 1
        if batch is not None:
            self.columns.add(attempt, batch)

    def latest(self) -> Latest:
        newest = {name: column.newest() for name, column in self.columns.by_name.items()}
        values = {name: value for name, value in newest.items() if value is not None}
        return Latest(step=self.columns.step, total=self.columns.total, values=MappingProxyType(values))


class Tail:
    """The end of one attempt's output."""

    def __init__(self) -> None:
        self.after: str | None = None
        self.text = b""
        self.cut = False

    def read(self, client: Client, job_id: str, number: int) -> bool:
        """Take in what is new; whether anything was."""
        if self.after is None:
            pieces = streams.output_tail(client, job_id, number, count=_PIECES)
            self.cut = len(pieces) == _PIECES
            self.after = keys.entry_id(number, 0)
        else:
            pieces = streams.output_after(client, job_id, number, self.after, count=_PIECES)
        for entry, text in pieces:
            self.after = entry
            self.text += text
        if len(self.text) > TAIL_BYTES:
            self.text = self.text[-TAIL_BYTES:]
            begun = self.text.find(b"\n") + 1
            if begun < len(self.text):  # else it is one line longer than the tail
                self.text = self.text[begun:]
            self.cut = True
        return bool(pieces)


class Watched:
    """A job whose page is open somewhere."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.stale = True  # attempts and history have to be read again
        self.wanted: set[int] = set()  # attempts whose output is looked at
        self._history: list[Event] = []
        self._history_after = "-"
        self._attempts: list[Attempt] = []
        self._tails: dict[int, Tail] = {}
        self._version = 0
        self._shown: tuple[int, int, JobView] | None = None

    def read(self, client: Client, job: Job) -> None:
        if self.stale:
            self._attempts = Store(client, by="dashboard").attempts(job)
            self._read_history(client)
            self.stale = False
            self._version += 1
        for number in sorted(self.wanted)[:-TAILS_MAX]:
            self.wanted.discard(number)
            self._tails.pop(number, None)
        for number in sorted(self.wanted):
            known = number in self._tails
            if self._tails.setdefault(number, Tail()).read(client, self.job_id, number) or not known:
                self._version += 1

    def view(self, series: Series | None) -> JobView:
        """The page's data as they stand; the same object while nothing changed."""
        at = series.version if series is not None else -1
        complete = series is not None and series.complete
        known = self._shown
        if known is None or known[:2] != (self._version, at) or known[2].complete != complete:
            number = known[2].version + 1 if known is not None else 1
            self._shown = known = (self._version, at, self._make(series, complete, number))
        return known[2]

    def _make(self, series: Series | None, complete: bool, version: int) -> JobView:
        tails = {number: tail.text.decode("utf-8", "replace") for number, tail in self._tails.items()}
        return JobView(
            attempts=tuple(self._attempts),
            history=tuple(self._history),
            lines=MappingProxyType(series.columns.lines() if series is not None else {}),
            tails=MappingProxyType(tails),
            cut=frozenset(number for number, tail in self._tails.items() if tail.cut),
            summary=MappingProxyType(dict(series.columns.summary) if series is not None else {}),
            left_out=series.columns.left_out if series is not None else 0,
            complete=complete,
            version=version,
        )

    def _read_history(self, client: Client) -> None:
        while True:
            page = streams.read_history(client, self.job_id, self._history_after)
            for entry, event in page:
                self._history_after = entry
                if event is not None:
                    self._history.append(event)
            del self._history[:-HISTORY_MAX]
            if len(page) < 500:
                return
