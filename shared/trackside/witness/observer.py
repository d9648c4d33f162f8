"""Looks at a running system again and again, and keeps what the oracle needs: so "at every instant" is judged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from trackside.bus import beats, keys
from trackside.errors import NotFound, TracksideError
from trackside.models import Job
from trackside.oracle import Holdings, Proof, Sample
from trackside.store import Store
from trackside.witness.bus import counts, lengths, sample
from trackside.witness.disk import damaged, proof, sizes, unfinished
from trackside.witness.living import holds, orphans, processes

ORPHAN_LIMIT_S: Final = 2.0  # what is left of an attempt is gone by then
_EVERY_S: Final = 0.25


@dataclass(kw_only=True, slots=True)
class Observer:
    """What was seen so far of some jobs of one home. `look` is called from one thread at a time."""

    store: Store
    home: Path
    job_ids: list[str]
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    samples: list[Sample] = field(default_factory=list)
    orphans: set[str] = field(default_factory=set)
    blind: int = 0  # looks that found no server
    looks: int = 0  # that found one
    looking: bool = False  # from a thread of its own
    _attempts: dict[str, int] = field(default_factory=dict)  # job -> the newest attempt that was seen
    _closed: set[tuple[str, int]] = field(default_factory=set)
    _newest: dict[str, str] = field(default_factory=dict)  # job -> the newest checkpoint that was proved
    _suspects: dict[int, tuple[float, str]] = field(default_factory=dict)
    _looked_s: float = 0.0

    def look(self) -> Sample | None:
        """Look once; None where no server answers."""
        try:
            seen = self._sample()
            found = orphans(self.store, self.home, of_silent=False)
        except TracksideError:
            self.blind += 1
            self._suspects = {}  # nobody could tell a host that its attempt was over
            return None
        self.looks += 1
        now_s = time.monotonic()
        if now_s - self._looked_s > ORPHAN_LIMIT_S:
            self._suspects = {}  # nor is it known whether somebody could, where nobody looked
        self._looked_s = now_s
        self._suspects = {pid: self._suspects.get(pid, (now_s, what)) for pid, what in found.items()}
        self.orphans |= {what for since_s, what in self._suspects.values() if now_s - since_s > ORPHAN_LIMIT_S}
        before = self.samples[-1] if self.samples else None
        same = before is not None and (seen.states, seen.live) == (before.states, before.live)
        if not same or seen.entries or seen.closed or seen.newest:
            self.samples.append(seen)
        return seen

    def _sample(self) -> Sample:
        living = set(processes(self.home).values())
        seen = sample(self.store, self.job_ids, self.clock_ms())
        entries: dict[str, dict[int, int]] = {}
        output: dict[str, dict[int, int]] = {}
        closed: dict[str, dict[int, int]] = {}
        newest: dict[str, Proof] = {}
        for job_id, state in seen.states.items():
            if not seen.attempts[job_id] or (state.terminal and (job_id, seen.attempts[job_id]) in self._closed):
                continue
            job = self.store.job(job_id)
            if job.attempt > self._attempts.get(job_id, 0):
                entries[job_id] = counts(self.store.client, keys.metrics(job_id))
                output[job_id] = counts(self.store.client, keys.output(job_id))
            self._attempts[job_id] = job.attempt
            closed |= self._newly_closed(job, living)
            if (found := self._pointer(job)) is not None:
                newest[job_id] = found
        return replace(seen, entries=entries, output=output, closed=closed, newest=newest)

    def _newly_closed(self, job: Job, living: set[tuple[str, int]]) -> dict[str, dict[int, int]]:
        """The sizes of files of attempts that had begun, are over, and whose processes are gone."""
        over = job.attempt if job.state.terminal else job.attempt - 1
        if all((job.id, number) in self._closed for number in range(1, over + 1)):
            return {}
        found = {
            number: size
            for number, size in sizes(self.home, job.id).items()
            if number <= over and (job.id, number) not in self._closed | living
        }
        self._closed |= {(job.id, number) for number in found}
        return {job.id: found} if found else {}

    def _pointer(self, job: Job) -> Proof | None:
        """The checkpoint that the record points to: proved when it is new, looked for each time."""
        ref = job.checkpoints[0] if job.checkpoints else None
        if ref is None or ref.job is not None:
            return None
        folder = self.home / "jobs" / job.id / "checkpoints"
        if self._newest.get(job.id) == ref.name and (folder / ref.name).is_dir():
            return None
        found = proof(folder, ref)
        if not found.there or found.error is not None:
            try:
                now = self.store.job(job.id).checkpoints
            except NotFound:
                return None
            if not now or now[0].name != ref.name:  # a newer one was accepted while we looked, and this one pruned
                return None
        self._newest[job.id] = ref.name
        return found


@contextmanager
def observed(store: Store, home: Path, job_ids: Iterable[str], every_s: float = _EVERY_S) -> Iterator[Observer]:
    """An observer that looks from a thread of its own until the block ends; raises then what went wrong in it.

    Jobs may be added to its list meanwhile.
    """
    observer = Observer(store=store, home=home, job_ids=list(job_ids))
    over, failed = threading.Event(), list[Exception]()

    def run() -> None:
        try:
            while not over.wait(every_s):
                observer.look()
        except Exception as error:  # noqa: BLE001 -- it is raised where the block ends
            failed.append(error)
        finally:
            observer.looking = False

    thread = threading.Thread(target=run, name="observer", daemon=True)
    observer.looking = True
    thread.start()
    try:
        yield observer
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def holdings(store: Store, home: Path, job_ids: Iterable[str], at_ms: int) -> Holdings:
    """What the services, the streams and the disk hold now; the jobs are those that have ended."""
    known = [beat for beat in beats.read(store.client).values() if beat is not None]
    wanted = list(job_ids)
    well = [job_id for job_id in wanted if store.job(job_id).state.value == "succeeded"]
    return Holdings(
        at_ms=at_ms,
        usage=holds(known),
        streams=lengths(store.client, wanted, {beat.host for beat in known}),
        unfinished={job_id: unfinished(home, job_id) for job_id in well},
        damaged={job_id: damaged(home, job_id) for job_id in wanted},
    )
