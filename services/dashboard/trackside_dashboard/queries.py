"""Questions to a snapshot, answered as rows and facts ready to show. Pure: no server, no screen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from trackside import line
from trackside.bus import keys
from trackside.models import (
    ACTIVE,
    Beat,
    Breaker,
    BreakerState,
    Event,
    EventKind,
    Job,
    JobState,
    Role,
    Slot,
)
from trackside_dashboard import measures, text
from trackside_dashboard.snapshot import Latest, Snapshot, Trace

SlotState = Literal["idle", "busy", "silent", "cordoned", "resting", "blocked", "stopping"]
DAY_MS: Final = 24 * 3600 * 1000
ROWS_MAX: Final = 400  # about 100 kB a refresh; filters reach the others
_METRICS_SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The fleet in a few numbers."""

    running: int
    queued: int
    waiting: int
    paused: int
    failed_day: int  # ended as failed within the last 24 hours
    succeeded_day: int
    slots: int
    busy: int
    silent: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a job is. `fraction` is None where the total is not known."""

    step: int | None = None
    total: int | None = None
    steps_per_s: float | None = None
    eta_s: float | None = None
    last_step_s: float | None = None  # how long ago the newest step was done, while it runs

    @property
    def fraction(self) -> float | None:
        if self.step is None or not self.total:
            return None
        return min(1.0, max(0.0, self.step / self.total))

    @property
    def line(self) -> str:
        """All of it: `step 120 / 500 · 24 % · 12 s left`."""
        parts = [f"step {self.words}"]
        if self.fraction is not None:
            parts.append(text.percent(self.fraction))
        if self.eta_s is not None and self.eta_s > 0:
            parts.append(f"{text.span(self.eta_s)} left")
        return " · ".join(parts)

    @property
    def words(self) -> str:
        """`120 / 500`, or what of it is known."""
        if self.step is None:
            return text.UNKNOWN
        return text.count(self.step) + (f" / {text.count(self.total)}" if self.total else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One slot as the fleet page shows it."""

    slot: Slot
    state: SlotState
    job: Job | None
    attempt: int | None
    progress: Progress
    beat_age_s: float | None
    silent_s: float | None  # since its beat ran out
    load_pct: float | None  # of the GPU, or of one core
    memory_mib: float | None
    temperature_c: float | None
    trace: Trace
    why: str | None = None  # it takes no work, or is slow


def worker_beat(snapshot: Snapshot, slot_id: str | None) -> Beat | None:
    """The beat of a slot's worker, if it can be heard."""
    return None if slot_id is None else snapshot.beats.get(keys.deadline_member(Role.WORKER, slot_id))


def progress(snapshot: Snapshot, job: Job, now_ms: int) -> Progress:
    """Where a job stands: by its worker's beat while it runs, else by its newest attempt, its checkpoints, its metrics.

    Metrics last, since what is logged after the loop may be of any step.
    """
    latest = snapshot.latest.get(job.id, Latest())
    beat = worker_beat(snapshot, job.slot)
    total = latest.total
    saved = job.checkpoints[0].step if job.checkpoints else latest.step
    known = snapshot.reached.get(job.id, saved)
    if beat is not None and beat.job == job.id and beat.attempt == job.attempt:
        total = beat.total if beat.total is not None else total
        step = beat.step if beat.step is not None else known
        if step is not None:  # a checkpoint is told at once, and a beat up to its interval later
            own = (ref.step for ref in job.checkpoints if ref.job is None and ref.attempt == job.attempt)
            step = max((step, *own))
        speed = beat.steps_per_s
        eta_s = (total - step) / speed if total and step is not None and speed and math.isfinite(speed) else None
        last_step_s = beat.last_step_s(now_ms)
        return Progress(step=step, total=total, steps_per_s=speed, eta_s=eta_s, last_step_s=last_step_s)
    return Progress(step=known, total=total)


def summary(snapshot: Snapshot) -> Summary:
    """The numbers on top of the fleet page."""
    by_state: dict[JobState, int] = {}
    for job in snapshot.jobs.values():
        by_state[job.state] = by_state.get(job.state, 0) + 1
    fresh = [j for j in snapshot.jobs.values() if j.ended_at_ms is not None and snapshot.at_ms - j.ended_at_ms < DAY_MS]
    states = [
        slot_state(slot, worker_beat(snapshot, slot.id), snapshot.breakers.get(slot.id)) for slot in snapshot.slots
    ]
    return Summary(
        running=sum(by_state.get(state, 0) for state in ACTIVE),
        queued=by_state.get(JobState.QUEUED, 0),
        waiting=by_state.get(JobState.WAITING, 0),
        paused=by_state.get(JobState.PAUSED, 0),
        failed_day=sum(job.state is JobState.FAILED for job in fresh),
        succeeded_day=sum(job.state is JobState.SUCCEEDED for job in fresh),
        slots=len(states),
        busy=sum(state == "busy" for state in states),
        silent=sum(state == "silent" for state in states),
    )


def slot_state(slot: Slot, beat: Beat | None, breaker: Breaker | None = None) -> SlotState:
    """What a slot does, the worst news first."""
    if beat is None:
        return "silent"
    if beat.job is not None:
        return "busy"
    if slot.cordoned:
        return "cordoned"
    if breaker is not None and breaker.state is not BreakerState.CLOSED:
        return "resting"
    if line.blocked_by(slot, beat) is not None:
        return "blocked"
    return "stopping" if beat.stopping else "idle"


def slot_why(slot: Slot, beat: Beat | None, breaker: Breaker | None, now_ms: int) -> str | None:
    """Why a slot takes no work, or is slow."""
    reasons = (slot.cordon_reason if slot.cordoned else None, line.blocked_by(slot, beat))
    parts = [part for part in reasons if part]
    if breaker is not None and breaker.state is not BreakerState.CLOSED:
        rest_s = ((breaker.until_ms or now_ms) - now_ms) / 1000
        test = f"self-test in {text.whole_span(rest_s)}" if breaker.state is BreakerState.OPEN else "its self-test runs"
        parts.append(f"{len(breaker.failed)} different jobs crashed on it; {test}")
    if slot.throttled is not None:
        parts.append(f"slow: {slot.throttled}")
    return text.plain("; ".join(parts), 300) or None


def tiles(snapshot: Snapshot, now_ms: int) -> list[Tile]:
    """Every slot, by id."""
    return [_tile(snapshot, slot, now_ms) for slot in snapshot.slots]


def _tile(snapshot: Snapshot, slot: Slot, now_ms: int) -> Tile:
    beat = worker_beat(snapshot, slot.id)
    job = snapshot.jobs.get(beat.job) if beat is not None and beat.job is not None else None
    if job is None:  # given to this slot, not heard of by its worker
        job = next((j for j in snapshot.jobs.values() if j.slot == slot.id), None)
    deadline = snapshot.deadlines_ms.get(keys.deadline_member(Role.WORKER, slot.id))
    used = measures.use(slot, beat, snapshot.samples.get(slot.host, {}))
    return Tile(
        slot=slot,
        state=slot_state(slot, beat, snapshot.breakers.get(slot.id)),
        job=job,
        attempt=job.attempt if job is not None else None,
        progress=progress(snapshot, job, now_ms) if job is not None else Progress(),
        beat_age_s=max(0, now_ms - beat.at_ms) / 1000 if beat is not None else None,
        silent_s=max(0, now_ms - deadline) / 1000 if beat is None and deadline is not None else None,
        load_pct=used.load_pct,
        memory_mib=used.memory_mib,
        temperature_c=used.temperature_c,
        trace=snapshot.traces.get(slot.id, Trace()),
        why=slot_why(slot, beat, snapshot.breakers.get(slot.id), now_ms),
    )


def why(job: Job, now_ms: int, place: int | None = None) -> str:
    """Why a job is in its state, for people: the next try, the newest end, the recorded sentence, its place in line."""
    parts: list[str] = []
    if job.state is JobState.WAITING and job.retry_at_ms is not None:
        left_s = (job.retry_at_ms - now_ms) / 1000
        parts.append(f"next try in {text.whole_span(left_s)}" if left_s > 0 else "next try now")
    if job.reason is not None and job.reason.value != job.state.value:
        ended = job.reason.value.replace("_", " ")
        running_again = job.slot is not None and job.attempt > 1
        parts.append(f"attempt {job.attempt - 1} ended: {ended}" if running_again else ended)
    if job.detail:
        parts.append(text.plain(job.detail, 300))
    if place is not None:
        parts.append(line.words(place))
    return " · ".join(parts)


def matching(snapshot: Snapshot, *, states: Collection[str] = (), needle: str = "") -> list[Job]:
    """The jobs that pass the filter, what runs first, then newest first.

    `needle`: words that must all be in name, id, slot, reason, detail or program.
    """
    known = (snapshot.jobs[job_id] for job_id in snapshot.order)
    found = [job for job in known if (not states or job.state.value in states) and _matches(job, needle)]
    return sorted(found, key=lambda job: job.state not in ACTIVE)


def job_rows(snapshot: Snapshot, jobs: Iterable[Job], now_ms: int) -> list[dict[str, object]]:
    """The first of these jobs as rows of the job table."""
    places = line.places(snapshot.jobs.values())
    return [_row(snapshot, job, now_ms, places.get(job.id)) for job in islice(jobs, ROWS_MAX)]


def _matches(job: Job, needle: str) -> bool:
    if not needle:
        return True
    fields = (job.name, job.id, job.slot or "", job.reason or "", job.detail or "", job.spec.program.target)
    return all(word in " ".join(fields).lower() for word in needle.lower().split())


def _row(snapshot: Snapshot, job: Job, now_ms: int, place: int | None) -> dict[str, object]:
    at = progress(snapshot, job, now_ms)
    latest = snapshot.latest.get(job.id, Latest())
    shown = list(latest.values.items())[:_METRICS_SHOWN]
    age = job.ended_at_ms if job.state.terminal else job.changed_at_ms
    return {
        "state": [text.chip(job.state)],
        "name": text.plain(job.name, 80),
        "progress": None if at.fraction is None else int(100 * at.fraction),
        "step": at.words,
        "left": "" if at.eta_s is None else text.span(at.eta_s),
        "metrics": " · ".join(f"{text.plain(name, 24)} {text.number(value)}" for name, value in shown),
        "why": why(job, now_ms, place),
        "attempt": str(job.attempt or ""),
        "slot": text.plain(job.slot or "", 60),
        "since": text.whole_span((now_ms - (age or now_ms)) / 1000),
        "submitted": text.ago(job.created_at_ms, now_ms),
        "id": job.id,
    }


def event_words(event: Event) -> str:
    """What an event tells, in a few words."""
    data = event.data
    match event.kind:
        case EventKind.TRANSITION:
            return f"{event.old} → {event.new}"
        case EventKind.SUBMITTED:
            return "submitted"
        case EventKind.ASSIGNED:
            return f"attempt {event.attempt} given to {data.get('slot', 'a slot')}"
        case EventKind.STARTED:
            return f"attempt {event.attempt} started"
        case EventKind.RESTORED:
            return f"attempt {event.attempt} goes on from step {data.get('resumed_step', '?')}"
        case EventKind.CHECKPOINT:
            return f"checkpoint of step {data.get('step', '?')}"
        case EventKind.ENDED:
            return f"attempt {event.attempt} ended: {str(event.cause or '').replace('_', ' ')}"
        case EventKind.NOTE:
            return str(event.cause or "note")
        case EventKind.SLOT:
            return f"slot {data.get('slot', '?')}: {event.cause}"


def event_rows(
    events: Iterable[Event], jobs: Mapping[str, Job], now_ms: int, *, kinds: Collection[str] = (), limit: int = 300
) -> list[dict[str, object]]:
    """Events, newest first."""
    rows: list[dict[str, object]] = []
    for event in reversed(tuple(events)):
        if kinds and event.kind.value not in kinds:
            continue
        job = jobs.get(event.job) if event.job is not None else None
        left_out = {"slot", "resumed_step", "step", "digest"}
        facts = [f"{k} {v}" for k, v in event.data.items() if k not in left_out and v is not None and k != "detail"]
        rows.append(
            {
                "time": event.at_ms,
                "ago": text.ago(event.at_ms, now_ms),
                "kind": event.kind.value,
                "job": text.plain(job.name if job is not None else event.job or "", 60),
                "what": text.plain(event_words(event), 160),
                "cause": text.plain(event.cause or "", 120),
                "detail": text.plain(event.data.get("detail") or " · ".join(facts), 300),
                "by": text.plain(event.by or "", 60),
                "id": event.job or "",
            }
        )
        if len(rows) >= limit:
            break
    return rows


def process_rows(snapshot: Snapshot, now_ms: int) -> list[dict[str, object]]:
    """Every process that has ever beaten and not left in order; the silent ones first."""
    rows: list[dict[str, object]] = []
    for member, beat in sorted(snapshot.beats.items(), key=lambda item: (item[1] is not None, item[0])):
        role, _, name = member.partition(":")
        deadline = snapshot.deadlines_ms.get(member, now_ms)
        silent = text.whole_span((now_ms - deadline) / 1000)
        doing = ""
        if beat is not None:
            doing = "leads" if beat.leader else "stands by" if beat.leader is False else ""
            doing = f"job {beat.job}, attempt {beat.attempt}" if beat.job is not None else doing
            doing = "stopping" if beat.stopping else doing
        rows.append(
            {
                "state": ["✓ beating" if beat is not None else "✕ silent"],
                "role": text.plain(role, 20),
                "name": text.plain(name, 60),
                "host": text.plain(beat.host, 60) if beat is not None else "",
                "pid": beat.pid if beat is not None else None,
                "beat": text.span((now_ms - beat.at_ms) / 1000) + " ago" if beat is not None else f"none for {silent}",
                "step": text.UNKNOWN
                if beat is None or (age_s := beat.last_step_s(now_ms)) is None
                else f"{text.whole_span(age_s)} ago",
                "up": text.whole_span((now_ms - beat.started_at_ms) / 1000) if beat is not None else text.UNKNOWN,
                "doing": text.plain(doing, 100),
            }
        )
    return rows
