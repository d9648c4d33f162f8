"""What the bus holds: histories of jobs, and looks at the running system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from trackside.bus import keys, streams
from trackside.bus.client import Client
from trackside.codec import decode
from trackside.errors import DecodeError, NotFound
from trackside.models import Batch, Event, EventKind, JobState
from trackside.oracle import Entry, Expected, History, JobHistory, Sample
from trackside.store import Store
from trackside.witness.disk import files, prove

_PAGE: Final = 1000


def read(
    store: Store,
    job_ids: Iterable[str],
    *,
    home: Path | None = None,
    expected: dict[str, Expected] | None = None,
    **facts: Any,
) -> History:
    """Take down the history of these jobs; with `home`, what lies on its disk of those that have ended too.

    `facts` are further fields of the History: samples, orphans, holdings, shown, denials, rules, over.
    """
    submitted = tuple(job_ids)
    jobs = []
    for job_id in submitted:
        try:
            job = store.job(job_id)
        except NotFound:
            continue
        proofs = left = None
        if home is not None and job.state.terminal:
            proofs = tuple(prove(home / "jobs" / job_id / "checkpoints", job.checkpoints))
            left = files(home, job_id)
        jobs.append(
            JobHistory(
                job=job,
                attempts=tuple(store.attempts(job)),
                events=tuple(event for _, event in streams.history(store.client, job_id)),
                entries=tuple(entries(store.client, job_id)),
                output=tuple(pieces(store.client, job_id)),
                proofs=proofs,
                files=left,
                expected=(expected or {}).get(job_id, Expected()),
            )
        )
    return History(submitted=submitted, jobs=tuple(jobs), slots=tuple(slot_events(store.client)), **facts)


def slot_events(client: Client) -> Iterator[Event]:
    """What was told of slots, oldest first, as far back as the stream of all events goes."""
    for _, event in streams.all_events(client):
        if event.kind is EventKind.SLOT:
            yield event


def entries(client: Client, job_id: str) -> Iterator[Entry]:
    """A job's metrics stream with the entries that open attempts, in order."""
    for attempt, sequence, fields in _stream(client, keys.metrics(job_id)):
        try:
            batch = decode(Batch, fields[b"d"]) if b"d" in fields else None
        except DecodeError:
            batch = None
        yield Entry(attempt=attempt, sequence=sequence, batch=batch)


def pieces(client: Client, job_id: str) -> Iterator[Entry]:
    """A job's output stream, in order."""
    for attempt, sequence, _ in _stream(client, keys.output(job_id)):
        yield Entry(attempt=attempt, sequence=sequence)


def counts(client: Client, stream: str) -> dict[int, int]:
    """How many entries of a fenced stream each attempt has."""
    return dict(Counter(attempt for attempt, _, _ in _stream(client, stream)))


def _stream(client: Client, name: str) -> Iterator[tuple[int, int, dict[bytes, bytes]]]:
    start = "-"
    while True:
        page = cast(list[Any], client.xrange(name, min=start, count=_PAGE))
        for raw_id, fields in page:
            start = f"({raw_id.decode()}"
            yield (*keys.parse_entry_id(raw_id), fields)
        if len(page) < _PAGE:
            return


def sample(store: Store, submitted: Iterable[str], at_ms: int) -> Sample:
    """One look at jobs and live set, as one transaction saw them."""
    wanted = list(submitted)
    with store.client.pipeline() as pipe:
        pipe.smembers(keys.LIVE_JOBS)
        for job_id in wanted:
            pipe.hmget(keys.job(job_id), ["state", "attempt"])
        live, *found = pipe.execute()
    there = {job_id: raw for job_id, raw in zip(wanted, found, strict=True) if raw[0] is not None}
    return Sample(
        at_ms=at_ms,
        states={job_id: JobState(state.decode()) for job_id, (state, _) in there.items()},
        live=frozenset(raw.decode() for raw in live),
        attempts={job_id: int(attempt or 0) for job_id, (_, attempt) in there.items()},
    )


def lengths(client: Client, job_ids: Iterable[str], hosts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The streams that are trimmed: how long each is, and to how much it is trimmed."""
    limits = {keys.EVENTS: keys.EVENTS_MAXLEN, **{keys.samples(host): keys.SAMPLES_MAXLEN for host in hosts}}
    for job_id in job_ids:
        limits |= {keys.metrics(job_id): keys.METRICS_MAXLEN, keys.output(job_id): keys.OUTPUT_MAXLEN}
    with client.pipeline() as pipe:
        for name in limits:
            pipe.xlen(name)
        found = pipe.execute()
    return {name: (int(length), limits[name]) for name, length in zip(limits, found, strict=True)}
