"""The witness: takes down what a system's bus and disk hold, for the oracle to judge. Looks, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from trackside.bus import keys, streams
from trackside.bus.client import Client
from trackside.codec import decode
from trackside.errors import CheckpointDamaged, DecodeError, NotFound
from trackside.models import AttemptState, Batch, CheckpointRef, Event, EventKind, JobState
from trackside.oracle import Entry, Expected, History, JobHistory, Proof, Sample
from trackside.sdk.checkpoints import Checkpoint, CheckpointStore
from trackside.store import Store

_PAGE: Final = 1000


def read(
    store: Store,
    job_ids: Iterable[str],
    *,
    home: Path | None = None,
    expected: dict[str, Expected] | None = None,
    **facts: Any,
) -> History:
    """Take down the history of these jobs; with `home`, the checkpoints of those that have ended are proved too.

    `facts` are further fields of the History: samples, orphans, rules, over.
    """
    submitted = tuple(job_ids)
    jobs = []
    for job_id in submitted:
        try:
            job = store.job(job_id)
        except NotFound:
            continue
        proofs = None
        if home is not None and job.state.terminal:  # opening a store removes what a living attempt is writing
            proofs = tuple(prove(home / "jobs" / job_id / "checkpoints", job.checkpoints))
        jobs.append(
            JobHistory(
                job=job,
                attempts=tuple(store.attempts(job)),
                events=tuple(event for _, event in streams.history(store.client, job_id)),
                entries=tuple(entries(store.client, job_id)),
                proofs=proofs,
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
    start = "-"
    while True:
        page = cast(list[Any], client.xrange(keys.metrics(job_id), min=start, count=_PAGE))
        for raw_id, fields in page:
            attempt, sequence = keys.parse_entry_id(raw_id)
            start = f"({raw_id.decode()}"
            try:
                batch = decode(Batch, fields[b"d"]) if b"d" in fields else None
            except DecodeError:
                batch = None
            yield Entry(attempt=attempt, sequence=sequence, batch=batch)
        if len(page) < _PAGE:
            return


def sample(store: Store, submitted: Iterable[str], at_ms: int) -> Sample:
    """One look at jobs and live set, as one transaction saw them."""
    wanted = list(submitted)
    with store.client.pipeline() as pipe:
        pipe.smembers(keys.LIVE_JOBS)
        for job_id in wanted:
            pipe.hget(keys.job(job_id), "state")
        live, *states = pipe.execute()
    return Sample(
        at_ms=at_ms,
        states={job_id: JobState(raw.decode()) for job_id, raw in zip(wanted, states, strict=True) if raw is not None},
        live=frozenset(raw.decode() for raw in live),
    )


def prove(folder: Path, accepted: Iterable[CheckpointRef]) -> Iterator[Proof]:
    """Verify accepted checkpoints of a job that nobody runs."""
    refs = list(accepted)
    if not refs:
        return
    if not folder.is_dir():
        yield from (Proof(name=ref.name, there=False) for ref in refs)
        return
    store = CheckpointStore(folder, 0)
    for ref in refs:
        path = folder / ref.name
        if not path.is_dir():
            yield Proof(name=ref.name, there=False)
            continue
        try:
            store.verify(Checkpoint(path=path, step=ref.step, attempt=ref.attempt), ref.digest)
        except CheckpointDamaged as error:
            yield Proof(name=ref.name, there=True, error=error.message)
        else:
            yield Proof(name=ref.name, there=True)


def processes(home: Path) -> dict[int, tuple[str, int]]:
    """Living processes that work inside an attempt's folder of this home: pid -> job and attempt."""
    jobs = (home / "jobs").absolute()
    found: dict[int, tuple[str, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            where = (entry / "cwd").readlink()
            state = (entry / "stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0]
        except OSError:  # it ended while we looked
            continue
        if where.is_relative_to(jobs) and state != "Z":
            parts = where.relative_to(jobs).parts
            if len(parts) > 2 and parts[2].isdecimal():
                found[int(entry.name)] = (parts[0], int(parts[2]))
    return found


def orphans(store: Store, home: Path) -> dict[int, str]:
    """Processes of attempts that have ended, at this moment; one just ended may take a moment to go."""
    found: dict[int, str] = {}
    for pid, (job_id, number) in processes(home).items():
        try:
            ended = store.attempt(job_id, number).state is AttemptState.ENDED
        except NotFound:
            ended = True
        if ended:
            found[pid] = f"process {pid} of attempt {number} of {job_id}"
    return found
