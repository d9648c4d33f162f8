"""The fenced streams of a job (metrics, output) and the open ones (events, samples).

A fenced stream's ids are `<attempt>-<byte>`: the attempt's number, and how much of its journal or output file the
entry brings the stream up to. Redis refuses an id that is not larger than the last, so opening attempt n with `n-0`
makes it refuse every older attempt, and an entry sent twice is refused the second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any, Final, TypeVar, cast

import orjson

from trackside.bus import keys
from trackside.bus.client import Client, Pipeline, ResponseError
from trackside.codec import decode, encode
from trackside.errors import DecodeError
from trackside.models import Batch, Event

T = TypeVar("T")
_DATA: Final = b"d"
_TEXT: Final = b"t"
_LAST_SEQUENCE: Final = 2**64 - 1
_NOT_LARGER: Final = "equal or smaller than the target stream top item"


class Shipped(Enum):
    """What became of an entry."""

    ACCEPTED = "accepted"
    ALREADY_THERE = "already there"
    FENCED = "fenced"


def open_attempt(pipe: Pipeline, job_id: str, number: int) -> None:
    """Fence off every older attempt: from here on only `number` and later are accepted."""
    for stream in (keys.metrics(job_id), keys.output(job_id)):
        pipe.xadd(stream, {"open": str(number)}, id=keys.entry_id(number, 0))


def last_sequence(client: Client, stream: str, number: int) -> int | None:
    """How far the stream has come with attempt `number`: 0 if nothing yet, None if a newer attempt owns it."""
    entries = cast(list[Any], client.xrevrange(stream, count=1))
    if not entries:
        return 0
    newest, sequence = keys.parse_entry_id(entries[0][0])
    if newest > number:
        return None
    return sequence if newest == number else 0


def ship_batch(client: Client, job_id: str, number: int, sequence: int, batch: Batch) -> Shipped:
    """Append journal lines up to byte `sequence` to the job's metrics stream."""
    return _ship(client, keys.metrics(job_id), number, sequence, {_DATA: encode(batch)}, keys.METRICS_MAXLEN)


def ship_output(client: Client, job_id: str, number: int, sequence: int, text: bytes) -> Shipped:
    """Append output up to byte `sequence` to the job's output stream."""
    return _ship(client, keys.output(job_id), number, sequence, {_TEXT: text}, keys.OUTPUT_MAXLEN)


def _ship(client: Client, stream: str, number: int, sequence: int, fields: dict[Any, Any], maxlen: int) -> Shipped:
    try:
        client.xadd(stream, fields, id=keys.entry_id(number, sequence), maxlen=maxlen, approximate=True)
    except ResponseError as error:
        if _NOT_LARGER not in str(error):
            raise
        reached = last_sequence(client, stream, number)
        return Shipped.FENCED if reached is None else Shipped.ALREADY_THERE
    return Shipped.ACCEPTED


def batches(client: Client, job_id: str, *, after: str = "-", count: int = 500) -> Iterator[tuple[str, int, Batch]]:
    """The metrics of a job, oldest first, as (entry id, attempt, batch); `after` is exclusive, "-" the beginning."""
    for entry, fields in _entries(client, keys.metrics(job_id), after, count):
        if _DATA in fields:
            try:
                yield entry, keys.parse_entry_id(entry)[0], decode(Batch, fields[_DATA])
            except DecodeError:
                continue


def last_batch(client: Client, job_id: str) -> tuple[str, int, Batch] | None:
    """The newest batch of metrics that can be read, if there is one."""
    for raw_id, fields in cast(list[Any], client.xrevrange(keys.metrics(job_id), count=8)):
        if _DATA in fields:
            entry = raw_id.decode()
            with suppress(DecodeError):
                return entry, keys.parse_entry_id(entry)[0], decode(Batch, fields[_DATA])
    return None


def output(client: Client, job_id: str, *, after: str = "-", count: int = 500) -> Iterator[tuple[str, int, bytes]]:
    """The output of a job, oldest first, as (entry id, attempt, text)."""
    for entry, fields in _entries(client, keys.output(job_id), after, count):
        if _TEXT in fields:
            yield entry, keys.parse_entry_id(entry)[0], fields[_TEXT]


def _entries(client: Client, stream: str, after: str, count: int) -> Iterator[tuple[str, dict[bytes, bytes]]]:
    start = after
    while True:
        page = cast(list[Any], client.xrange(stream, min=start if start == "-" else f"({start}", count=count))
        for raw_id, fields in page:
            start = raw_id.decode()
            yield start, fields
        if len(page) < count:
            return


def append_event(pipe: Pipeline, event: Event) -> None:
    """Add an event to the history of everything, to its job's history, and wake who listens."""
    data = encode(event)
    pipe.xadd(keys.EVENTS, {_DATA: data}, maxlen=keys.EVENTS_MAXLEN, approximate=True)
    if event.job is not None:
        pipe.xadd(keys.history(event.job), {_DATA: data})
    pipe.publish(keys.STATUS_CHANNEL, data)


def history(client: Client, job_id: str, *, after: str = "-") -> Iterator[tuple[str, Event]]:
    """A job's events, oldest first; one that cannot be read is left out."""
    return _events(client, keys.history(job_id), after)


def all_events(client: Client) -> Iterator[tuple[str, Event]]:
    """The events of everything, oldest first, as far back as the stream goes; one that cannot be read is left out."""
    return _events(client, keys.EVENTS, "-")


def _events(client: Client, stream: str, after: str) -> Iterator[tuple[str, Event]]:
    for entry, fields in _entries(client, stream, after, 500):
        event = _decoded(Event, fields)
        if event is not None:
            yield entry, event


def newest_event_id(client: Client) -> str:
    """Where the events stream stands now, to read on from."""
    entries = cast(list[Any], client.xrevrange(keys.EVENTS, count=1))
    return entries[0][0].decode() if entries else "0-0"


def read_events(client: Client, after: str, *, block_s: float, count: int = 500) -> list[tuple[str, Event | None]]:
    """Events after an id, waiting up to `block_s` for the first; None for one that cannot be read."""
    block_ms = max(1, int(block_s * 1000))
    answer = cast(Any, client.xread({keys.EVENTS: after}, count=count, block=block_ms))
    return [each for _, entries in answer or [] for each in events_in(entries)]


def events_in(entries: Iterable[Any]) -> list[tuple[str, Event | None]]:
    """The events in a stream's raw entries, with their ids; None for one that cannot be read."""
    return [(raw_id.decode(), _decoded(Event, fields)) for raw_id, fields in entries]


def add_sample(client: Client, host: str, sample: dict[str, Any]) -> None:
    """Append a sample of a host's devices and processes."""
    client.xadd(keys.samples(host), {_DATA: orjson.dumps(sample)}, maxlen=keys.SAMPLES_MAXLEN, approximate=True)


def samples(client: Client, host: str, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The newest samples of a host, oldest first, as (at_ms, sample)."""
    entries = cast(list[Any], client.xrevrange(keys.samples(host), count=count))
    return [(int(raw.split(b"-")[0]), orjson.loads(fields[_DATA])) for raw, fields in reversed(entries)]


def read_news(
    client: Client, events_after: str, metrics_after: dict[str, str], *, block_s: float, count: int = 500
) -> tuple[list[tuple[str, Event | None]], dict[str, list[tuple[str, int, Batch | None]]]]:
    """Events, and metrics by job, after these ids, in one command that waits up to `block_s` for the first.

    None stands for an entry that opens an attempt or cannot be read, so that a reader can go on behind it.
    """
    jobs = {keys.metrics(job_id): job_id for job_id in metrics_after}
    after = {keys.EVENTS: events_after, **{key: metrics_after[job_id] for key, job_id in jobs.items()}}
    answer = cast(Any, client.xread(cast(Any, after), count=count, block=max(1, int(block_s * 1000))))
    events: list[tuple[str, Event | None]] = []
    metrics: dict[str, list[tuple[str, int, Batch | None]]] = {}
    for raw_key, entries in answer or []:
        job_id = jobs.get(raw_key.decode())
        for raw_id, fields in entries:
            entry = raw_id.decode()
            if job_id is None:
                events.append((entry, _decoded(Event, fields)))
            else:
                number = keys.parse_entry_id(entry)[0]
                metrics.setdefault(job_id, []).append((entry, number, _decoded(Batch, fields)))
    return events, metrics


def newest_events(client: Client, count: int) -> list[tuple[str, Event | None]]:
    """The last events, oldest first; None for one that cannot be read."""
    return events_in(reversed(cast(list[Any], client.xrevrange(keys.EVENTS, count=count))))


def read_history(client: Client, job_id: str, after: str, *, count: int = 500) -> list[tuple[str, Event | None]]:
    """A page of a job's events after an id ("-": from the first); None for one that cannot be read."""
    start = after if after == "-" else f"({after}"
    return events_in(cast(list[Any], client.xrange(keys.history(job_id), min=start, count=count)))


def output_tail(client: Client, job_id: str, number: int, *, count: int) -> list[tuple[str, bytes]]:
    """The last pieces of one attempt's output, oldest first."""
    first, last = keys.entry_id(number, 0), keys.entry_id(number, _LAST_SEQUENCE)
    entries = cast(list[Any], client.xrevrange(keys.output(job_id), max=last, min=first, count=count))
    return [(raw_id.decode(), fields[_TEXT]) for raw_id, fields in reversed(entries) if _TEXT in fields]


def output_after(client: Client, job_id: str, number: int, after: str, *, count: int) -> list[tuple[str, bytes]]:
    """The next pieces of one attempt's output after an id, oldest first; nothing of a newer attempt is fetched."""
    last = keys.entry_id(number, _LAST_SEQUENCE)
    entries = cast(list[Any], client.xrange(keys.output(job_id), min=f"({after}", max=last, count=count))
    return [(raw_id.decode(), fields[_TEXT]) for raw_id, fields in entries if _TEXT in fields]


def _decoded(kind: type[T], fields: dict[bytes, bytes]) -> T | None:
    try:
        return decode(kind, fields[_DATA])
    except (DecodeError, KeyError):
        return None
