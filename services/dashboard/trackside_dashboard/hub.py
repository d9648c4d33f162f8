"""The one reader of a dashboard process: follows the bus in a thread, so that viewers cost the server nothing.

1. It connects as a user that may only read, takes stock of the newest jobs, then follows events and the metrics of
   live and looked-at jobs in one blocking command, and reads beats, slots and samples at every tick.
2. Sessions read `snapshot()`, which is replaced as a whole and never changed, and `health()`, which says how old it is.
3. The server gone: the last snapshot stays, and the reader connects again with growing waits, then takes stock anew.
4. A fault of its own in one part is counted and shown; the other parts and the thread go on.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from trackside import logs
from trackside.bus import beats, keys, streams
from trackside.bus.client import Client, connect
from trackside.errors import BusError, ConfigurationError
from trackside.models import Attempt, Beat, Breaker, Event, Job, JobState, Role, Slot
from trackside.records import decoded
from trackside.retry import backoff_s
from trackside.store import Store
from trackside_dashboard import measures
from trackside_dashboard.refusals import Refusals
from trackside_dashboard.snapshot import Health, JobView, Latest, Snapshot, Trace
from trackside_dashboard.watched import Series, Watched, finite

T = TypeVar("T")
JOBS_MAX: Final = 2_000  # the newest; older ones are read when somebody opens them
SERIES_MAX: Final = 64  # jobs whose metrics are kept
EVENTS_KEPT: Final = 500
TRACE_KEPT: Final = 240  # beats of a slot: four minutes
LATEST_A_TICK: Final = 50  # finished jobs whose last metrics are fetched in one tick
LIVE_AGE_S: Final = 3.0
WATCH_S: Final = 30.0  # a job stays looked-at so long after the last look
_SOON_S: Final = 0.05  # between two reads under a flood, so that the thread leaves time to the pages
_RECHECK_S: Final = 10.0  # live jobs are read again even without an event
_SAMPLES_S: Final = 2.0
_MEMO_MAX: Final = 256


class Hub:
    """The reader. `url_of` is asked at every connection, so that a changed password file is seen."""

    def __init__(self, url_of: Callable[[], str], *, every_s: float = 0.5) -> None:
        self._url_of = url_of
        self._every_s = every_s
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._snapshot = Snapshot()
        self._seen_s: float | None = None
        self._error: str | None = None
        self._faults = 0
        self._fault: str | None = None
        self._wanted: dict[str, float] = {}  # job looked at -> when, monotonic
        self._memo: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()
        self._memo_lock = threading.Lock()
        self._forget()

    # -- for sessions ----------------------------------------------------------------------------------------------

    def start(self) -> Hub:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; it may take one blocking read."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * self._every_s + 3)

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def now_ms(self) -> int:
        """The server's time now, as far as this process can tell."""
        seen_s = self._seen_s
        return self._snapshot.at_ms + (0 if seen_s is None else int((time.monotonic() - seen_s) * 1000))

    def health(self) -> Health:
        facts: dict[str, Any] = {"error": self._error, "faults": self._faults, "fault": self._fault}
        seen_s = self._seen_s
        if seen_s is None:
            return Health(state="none", **facts)
        age_s = time.monotonic() - seen_s
        live = self._error is None and age_s <= LIVE_AGE_S
        return Health(state="live" if live else "stale", age_s=age_s, seen_at_ms=self._snapshot.at_ms, **facts)

    def view(self, job_id: str, *, attempt: int | None = None, wait_s: float = 1.5) -> JobView | None:
        """What the page of a job needs, kept up to date while this is asked.

        None while it is not there yet, or too many others are looked at.

        `attempt`: whose output to follow as well. The first look waits up to `wait_s`.
        """
        first = job_id not in self._wanted
        if first and self._is_crowded():
            return None
        self._wanted[job_id] = time.monotonic()
        watched = self._watched.setdefault(job_id, Watched(job_id))
        if attempt is not None and attempt not in watched.wanted:
            watched.wanted.add(attempt)
            first = True
        if first and self._error is None:
            with self._news:
                self._news.wait_for(lambda: self._is_in(job_id, attempt), timeout=wait_s)
        return self._snapshot.views.get(job_id)

    def _is_crowded(self) -> bool:
        """Whether the pages of so many jobs are open that no other is read; of invented jobs more are borne."""
        jobs = self._snapshot.jobs
        wanted = list(self._wanted)  # other sessions add to it meanwhile
        return sum(job_id in jobs for job_id in wanted) >= SERIES_MAX or len(wanted) >= 4 * SERIES_MAX

    def memo(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> T:
        """What `make` returned for this version, whichever session asked: charts are drawn once for all viewers."""
        with self._memo_lock:
            known = self._memo.get(key)
            if known is not None and known[0] == version:
                self._memo.move_to_end(key)
                return cast(T, known[1])
        value = make()
        with self._memo_lock:
            self._memo[key] = (version, value)
            while len(self._memo) > _MEMO_MAX:
                self._memo.popitem(last=False)
        return value

    def _is_in(self, job_id: str, attempt: int | None) -> bool:
        view = self._snapshot.views.get(job_id)
        return view is not None and (attempt is None or attempt in view.tails)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._after = "0-0"
        self._jobs: dict[str, Job] = {}
        self._order: dict[str, int] = {}  # job id -> created_at_ms
        self._total_jobs = 0
        self._slots: list[Slot] = []
        self._breakers: dict[str, Breaker] = {}
        self._beats: dict[str, Beat | None] = {}
        self._deadlines: dict[str, int] = {}
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._latest: dict[str, Latest] = {}
        self._reached: dict[str, int] = {}
        self._traces: dict[str, deque[tuple[int, float | None, float | None]]] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        self._series: OrderedDict[str, Series] = OrderedDict()
        self._watched: dict[str, Watched] = {job_id: Watched(job_id) for job_id in list(self._wanted)}
        self._changed: set[str] = set()
        self._refusals = Refusals()
        self._at_ms = 0
        self._recheck_s = self._sampled_s = 0.0

    def _run(self) -> None:
        log = logs.get()
        failures = 0
        while not self._stop.is_set():
            try:
                with connect(self._url_of(), name="dashboard") as client:
                    self._take_stock(client)
                    failures = 0
                    log.info("bus_followed", jobs=self._total_jobs)
                    while not self._stop.is_set():
                        self._tick(client)
            except (BusError, ConfigurationError) as error:
                if self._error is None:
                    log.warning("bus_lost", error=error.message)
                self._error = error.message
            except Exception as error:  # noqa: BLE001  # the thread must outlive any fault: it is counted and shown
                self._count_fault(error)
                self._error = f"the reader failed: {type(error).__name__}"
            failures += 1
            self._stop.wait(0.05 + backoff_s(failures, first_s=0.2, max_s=2.0))

    def _take_stock(self, client: Client) -> None:
        """Read everything anew; the server may be another one, or have lost data, since the last connection."""
        self._forget()
        store = Store(client, by="dashboard")
        self._take_events(streams.newest_events(client, EVENTS_KEPT))
        ids = list(dict.fromkeys([*store.job_ids(JOBS_MAX), *store.live_job_ids(), *self._wanted]))
        for start in range(0, len(ids), 200):
            self._take_jobs(store, ids[start : start + 200])
        self._tick(client)

    def _tick(self, client: Client) -> None:
        events, metrics = streams.read_news(client, self._after, self._followed(), block_s=self._every_s)
        self._guarded(self._take_events, events)
        self._guarded(self._take_metrics, metrics)
        self._guarded(self._read_jobs, client)
        self._guarded(self._read_beats, client)
        self._guarded(self._read_watched, client)
        self._guarded(self._read_latest, client)
        self._guarded(self._read_samples, client)
        self._publish()
        self._stop.wait(_SOON_S)

    def _guarded(self, part: Callable[[Any], None], argument: Any) -> None:
        try:
            part(argument)
        except BusError:
            raise
        except Exception as error:  # noqa: BLE001  # one part's fault must not blind the others: counted and shown
            self._count_fault(error)

    def _count_fault(self, error: Exception) -> None:
        self._faults += 1
        self._fault = f"{type(error).__name__}: {error}"
        if self._faults <= 10 or self._faults % 1000 == 0:
            logs.get().error("reader_fault", faults=self._faults, exc_info=error)

    def _followed(self) -> dict[str, str]:
        """Where to read on in the metrics of each job that is looked at or runs, the least lately needed dropped."""
        now_s = time.monotonic()
        for job_id in [job_id for job_id, seen_s in list(self._wanted.items()) if now_s - seen_s > WATCH_S]:
            self._wanted.pop(job_id, None)
            self._watched.pop(job_id, None)
        active = sorted(
            (job for job in self._jobs.values() if job.slot is not None or job.state is JobState.RUNNING),
            key=lambda job: job.changed_at_ms,
        )[-SERIES_MAX:]
        for job_id in (*(job.id for job in active), *list(self._wanted)):
            self._series.setdefault(job_id, Series())
            self._series.move_to_end(job_id)
        while len(self._series) > SERIES_MAX:
            self._series.popitem(last=False)
        needed = {*(job.id for job in active), *self._wanted}
        return {job_id: series.after for job_id, series in self._series.items() if job_id in needed}

    def _take_events(self, events: list[tuple[str, Event | None]]) -> None:
        for entry, event in events:
            self._after = entry
            if event is not None:
                self._events.append(event)
                if event.job is not None:
                    self._changed.add(event.job)

    def _take_metrics(self, metrics: dict[str, list[tuple[str, int, Any]]]) -> None:
        for job_id, series in self._series.items():
            found = metrics.get(job_id, [])
            series.complete = series.complete or len(found) < 500
            for entry, attempt, batch in found:
                series.take(entry, attempt, batch)
            if found:
                self._latest[job_id] = series.latest()

    def _read_jobs(self, client: Client) -> None:
        changed, self._changed = self._changed, set()
        if time.monotonic() - self._recheck_s > _RECHECK_S:
            self._recheck_s = time.monotonic()
            self._total_jobs = client.zcard(keys.JOBS)
            changed |= {job.id for job in self._jobs.values() if not job.state.terminal}
        if any(job_id not in self._jobs for job_id in changed):
            self._total_jobs = client.zcard(keys.JOBS)
        for watched in list(self._watched.values()):
            if watched.job_id in changed or watched.job_id not in self._jobs:
                changed.add(watched.job_id)
                watched.stale = True
        if changed:
            self._take_jobs(Store(client, by="dashboard"), sorted(changed))

    def _take_jobs(self, store: Store, ids: list[str]) -> None:
        jobs = store.jobs(ids)
        for job in jobs:
            self._jobs[job.id] = job
            self._order[job.id] = job.created_at_ms
            self._reached.pop(job.id, None)
        newest = store.hashes(keys.attempt(job.id, job.attempt) for job in jobs if job.attempt)
        for attempt in decoded(Attempt, newest):
            step = attempt.outcome.last_step if attempt.outcome is not None else attempt.resumed_step
            if step is not None:
                self._reached[attempt.job] = step
        if len(self._jobs) > JOBS_MAX + 200:
            old = sorted(self._jobs.values(), key=lambda job: job.created_at_ms)[: len(self._jobs) - JOBS_MAX]
            for job in old:
                if job.state.terminal and job.id not in self._wanted:
                    for known in (self._jobs, self._order, self._latest, self._reached):
                        known.pop(job.id, None)

    def _read_beats(self, client: Client) -> None:
        self._at_ms, self._deadlines = beats.deadlines(client)
        self._beats = beats.read(client, list(self._deadlines))
        store = Store(client, by="dashboard")
        self._slots = store.slots()
        self._breakers = store.breakers(slot.id for slot in self._slots)
        for slot in self._slots:
            beat = self._beats.get(keys.deadline_member(Role.WORKER, slot.id))
            trace = self._traces.setdefault(slot.id, deque(maxlen=TRACE_KEPT))
            if beat is not None and (not trace or trace[-1][0] != beat.at_ms):
                load_pct = measures.use(slot, beat, self._samples.get(slot.host, {})).load_pct
                trace.append((beat.at_ms, load_pct, finite(beat.steps_per_s)))
        for gone in self._traces.keys() - {slot.id for slot in self._slots}:
            del self._traces[gone]

    def _read_watched(self, client: Client) -> None:
        for watched in list(self._watched.values()):
            job = self._jobs.get(watched.job_id)
            if job is not None:
                watched.read(client, job)

    def _read_latest(self, client: Client) -> None:
        """Last metrics of jobs that nobody follows, some at a time, the newest jobs first."""
        missing = [job_id for job_id in self._ordered() if job_id not in self._latest and job_id not in self._series]
        for job_id in missing[:LATEST_A_TICK]:
            self._latest[job_id] = Latest()  # stays so if it cannot be read
            found = streams.last_batch(client, job_id)
            if found is not None:
                series = Series()
                series.take(*found)
                self._latest[job_id] = series.latest()

    def _read_samples(self, client: Client) -> None:
        if time.monotonic() - self._sampled_s < _SAMPLES_S:
            return
        self._sampled_s = time.monotonic()
        self._refusals.read(client, self._sampled_s)
        for host in {slot.host for slot in self._slots}:
            found = streams.samples(client, host, 1)
            if found and isinstance(found[0][1], dict):
                self._samples[host] = found[0][1]

    def _ordered(self) -> list[str]:
        return sorted(self._order, key=lambda job_id: (self._order[job_id], job_id), reverse=True)

    def _publish(self) -> None:
        views = {
            job_id: watched.view(self._series.get(job_id))
            for job_id, watched in list(self._watched.items())
            if job_id in self._jobs
        }
        snapshot = Snapshot(
            version=self._snapshot.version + 1,
            at_ms=self._at_ms,
            jobs=MappingProxyType(dict(self._jobs)),
            order=tuple(self._ordered()),
            total_jobs=max(self._total_jobs, len(self._jobs)),
            slots=tuple(self._slots),
            breakers=MappingProxyType(self._breakers),
            beats=MappingProxyType(self._beats),
            deadlines_ms=MappingProxyType(self._deadlines),
            events=tuple(self._events),
            latest=MappingProxyType(dict(self._latest)),
            reached=MappingProxyType(dict(self._reached)),
            traces=MappingProxyType({slot_id: _trace(trace) for slot_id, trace in self._traces.items()}),
            samples=MappingProxyType(dict(self._samples)),
            views=MappingProxyType(views),
            refused=self._refusals.now(time.monotonic()),
        )
        with self._news:
            self._snapshot = snapshot
            self._seen_s = time.monotonic()
            self._error = None
            self._news.notify_all()


def _trace(beats_: Iterable[tuple[int, float | None, float | None]]) -> Trace:
    columns = tuple(zip(*beats_, strict=True))
    return Trace(at_ms=columns[0], load_pct=columns[1], steps_per_s=columns[2]) if columns else Trace()
