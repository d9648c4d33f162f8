"""A job's records written back as a whole, to a server that has lost them or has older ones.

The one place besides the store that writes them, under the same guard: the job's key and the leader's lease are
watched, and so are its streams, since a trainer goes on writing to them meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from trackside.bus import keys, streams
from trackside.bus.client import Pipeline
from trackside.codec import decode_fields, encode
from trackside.models import Attempt, Event, Job
from trackside.records import decoded, replace_hash
from trackside.store import Store

_LAST: Final = ("+", "-", "COUNT", "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """All that one side has of a job: its record, its attempts by number, its history with the entries' ids."""

    job: Job
    attempts: Mapping[int, Attempt]
    history: tuple[tuple[str, Event], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a job's records are to be; `more` comes after the history and is told to who listens."""

    held: Held
    more: tuple[Event, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is asked of a job: attempts from number `first` on, events after an id."""

    job: Job
    first: int = 1
    after: str = "-"


def held(store: Store, wanted: Sequence[Wanted]) -> list[Held]:
    """What the server has of these jobs, in one round trip; of each as it stands at one moment."""
    with store.client.pipeline() as pipe:
        for each in wanted:
            after = each.after if each.after == "-" else f"({each.after}"
            pipe.hgetall(keys.job(each.job.id))
            pipe.xrange(keys.history(each.job.id), min=after)
            for number in range(each.first, each.job.attempt + 1):
                pipe.hgetall(keys.attempt(each.job.id, number))
        answers = iter(pipe.execute() if wanted else ())
    found: list[Held] = []
    for each in wanted:
        raw, history = next(answers), next(answers)
        attempts = [next(answers) for _ in range(each.first, each.job.attempt + 1)]
        found.append(_held(decode_fields(Job, raw) if raw else each.job, attempts, history))
    return found


def put_back(store: Store, job_id: str, decide: Callable[[Held | None, int], Written | None]) -> bool:
    """Read all that the server has of a job, ask `decide(held, now_ms)`, write what it returns; whether it wrote.

    Opens the job's streams for its newest attempt, so that older ones stay shut out. `decide` may run several times.
    """
    key, history = keys.job(job_id), keys.history(job_id)
    fenced = (keys.metrics(job_id), keys.output(job_id))
    reads = [("HGETALL", key), ("XRANGE", history, "-", "+"), *(("XREVRANGE", stream, *_LAST) for stream in fenced)]

    def turn(pipe: Pipeline) -> bool:
        pipe.watch(history, *fenced)
        raw, entries, *newest, now = store.look(pipe, key, *reads)
        job = decode_fields(Job, raw) if raw else None
        numbers = range(1, job.attempt + 1) if job is not None else ()
        attempts = [cast(dict[bytes, bytes], pipe.hgetall(keys.attempt(job_id, number))) for number in numbers]
        written = decide(None if job is None else _held(job, attempts, entries or []), now)
        if written is None:
            return False
        pipe.multi()
        _write(pipe, written)
        for stream, last in zip(fenced, newest, strict=True):
            number = written.held.job.attempt
            if number and (not last or keys.parse_entry_id(last[0][0])[0] < number):
                pipe.xadd(stream, {"open": str(number)}, id=keys.entry_id(number, 0))
        pipe.execute()
        return True

    return store.until_undisturbed(turn, f"job {job_id!r}", job=job_id)


def _write(pipe: Pipeline, written: Written) -> None:
    job = written.held.job
    pipe.zadd(keys.JOBS, {job.id: job.created_at_ms})
    (pipe.srem if job.state.terminal else pipe.sadd)(keys.LIVE_JOBS, job.id)
    records: list[tuple[str, Job | Attempt]] = [(keys.job(job.id), job)]
    records += [(keys.attempt(job.id, number), attempt) for number, attempt in written.held.attempts.items()]
    for key, record in records:
        replace_hash(pipe, key, record)
    pipe.delete(keys.history(job.id))
    for entry, event in written.held.history:
        pipe.xadd(keys.history(job.id), {b"d": encode(event)}, id=entry)
    for event in written.more:
        streams.append_event(pipe, event)


def _held(job: Job, attempts: list[dict[bytes, bytes]], entries: list[Any]) -> Held:
    history = tuple((entry, event) for entry, event in streams.events_in(entries) if event is not None)
    return Held(job=job, attempts={attempt.number: attempt for attempt in decoded(Attempt, attempts)}, history=history)
