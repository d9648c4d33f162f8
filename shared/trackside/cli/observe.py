"""What is on the bus, put together as rows of plain values: what `ls`, `ps`, `slots` and `top` show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trackside.models import Attempt, Beat, Job
    from trackside.store import Store


def live_beats(store: Store) -> dict[str, Beat]:
    """The newest beat of each job's worker."""
    from trackside.bus import beats

    return by_job(beats.read(store.client))


def by_job(beats: Mapping[str, Beat | None]) -> dict[str, Beat]:
    """Workers' beats by job; where two workers name one job, the newer attempt's."""
    from trackside.models import Role

    found: dict[str, Beat] = {}
    for beat in beats.values():
        if beat is None or beat.role is not Role.WORKER or beat.job is None:
            continue
        known = found.get(beat.job)
        if known is None or (known.attempt or 0) < (beat.attempt or 0):
            found[beat.job] = beat
    return found


def places(store: Store, known: Iterable[Job]) -> dict[str, int]:
    """The places in line of all jobs that wait for a slot; what is `known` already is not read again."""
    from trackside import line

    jobs = {job.id: job for job in known}
    if not any(map(line.is_in_line, jobs.values())):
        return {}
    others = [job_id for job_id in store.live_job_ids() if job_id not in jobs]
    return line.places([*jobs.values(), *store.jobs(others)])


def unfit(store: Store, jobs: Iterable[Job]) -> dict[str, str]:
    """Of the jobs in line, those that wait for a kind of slot of which none is there, and the words for it."""
    from trackside import line

    asking = [job for job in jobs if job.spec.device != "any" and line.is_in_line(job)]
    kinds = {slot.kind for slot in store.slots()} if asking else set()
    return {job.id: why for job in asking if (why := line.unfit(job, kinds)) is not None}


def place_of(store: Store, job: Job) -> int | None:
    """The job's place in line; None if it is in none."""
    return places(store, [job]).get(job.id)


def job_row(
    job: Job,
    beat: Beat | None,
    attempt: Attempt | None,
    now_ms: int,
    place: int | None = None,
    unfit: str | None = None,
) -> dict[str, Any]:
    """One job as `ls --json` gives it: progress from a live beat, else from how the last attempt ended."""
    step, total, speed, step_age_s = None, None, None, None
    outcome = None if attempt is None else attempt.outcome
    newest = job.checkpoints[0].step if job.checkpoints else None
    if attempt is not None:
        total = attempt.total_steps
        step = outcome.last_step if outcome is not None else attempt.resumed_step
    if step is None:
        step = newest
    if beat is not None and beat.attempt == job.attempt and job.slot is not None:
        step = beat.step if beat.step is not None else step
        total = beat.total if beat.total is not None else total
        speed, step_age_s = beat.steps_per_s, beat.last_step_s(now_ms)
    return {
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "step": step,
        "total_steps": total,
        "steps_per_s": speed,
        "last_step_s": step_age_s,
        "attempt": job.attempt,
        "slot": job.slot,
        "reason": None if job.reason is None else job.reason.value,
        "detail": job.detail,
        "place": place,
        "unfit": unfit,
        "created_at_ms": job.created_at_ms,
        "changed_at_ms": job.changed_at_ms,
        "ended_at_ms": job.ended_at_ms,
        "retry_at_ms": job.retry_at_ms,
        "checkpoint_step": newest,
    }


def process_rows(store: Store) -> tuple[int, list[dict[str, Any]]]:
    """The server's time, and every process: those that beat, those that fell silent, the launcher's children."""
    from trackside.bus import beats

    now, due_ms = beats.deadlines(store.client)
    found = beats.read(store.client, list(due_ms))
    rows = []
    known = {(beat.host, beat.pid) for beat in found.values() if beat is not None}
    for member, beat in found.items():
        rows.append(_silent(member, now - due_ms[member]) if beat is None else _process(beat, now))
        for name, pid in {} if beat is None else beat.children.items():
            if beat is not None and (beat.host, pid) not in known:
                rows.append({**_blank(name), "pid": pid, "host": beat.host, "status": "ok"})
    return now, sorted(rows, key=lambda row: (str(row["host"]), _ORDER.get(row["role"], 9), row["name"] or ""))


_NAMED_BY_PID = frozenset({"launcher", "supervisor", "dashboard"})  # <host>-<pid>; an agent by its host alone
_ORDER = {"launcher": 0, "redis": 1, "supervisor": 2, "dashboard": 3, "agent": 4, "trainer": 4, "worker": 5}


def _process(beat: Beat, now: int) -> dict[str, Any]:
    return {
        "role": beat.role.value,
        "name": beat.name,
        "pid": beat.pid,
        "host": beat.host,
        "slot": beat.slot,
        "job": beat.job,
        "attempt": beat.attempt,
        "attempt_pid": beat.attempt_pid,
        "status": "stopping" if beat.stopping else "ok",
        "age_s": max(0, now - beat.at_ms) / 1000,
        "silent_s": None,
        "step": beat.step,
        "total_steps": beat.total,
        "steps_per_s": beat.steps_per_s,
        "last_step_s": beat.last_step_s(now),
        "cpu_pct": beat.cpu_pct,
        "rss_mib": beat.rss_mib,
    }


def _silent(member: str, since_ms: int) -> dict[str, Any]:
    """What is known of a process whose beat has run out: its name, which tells its host and pid or slot."""
    role, _, name = member.partition(":")
    host, _, last = name.rpartition("-")
    has_pid = role in _NAMED_BY_PID and last.isdecimal()
    return {
        **_blank(role),
        "name": name,
        "pid": int(last) if has_pid else None,
        "host": name if role == "agent" else host if has_pid or role == "worker" else None,
        "slot": name if role == "worker" else None,
        "status": "silent",
        "silent_s": max(0, since_ms) / 1000,
    }


def _blank(role: str) -> dict[str, Any]:
    keys = ("name", "pid", "host", "slot", "job", "attempt", "attempt_pid", "status", "age_s", "silent_s", "step",
            "total_steps", "steps_per_s", "last_step_s", "cpu_pct", "rss_mib")  # fmt: skip
    return {"role": role, **dict.fromkeys(keys)}


def slot_rows(store: Store) -> tuple[int, list[dict[str, Any]]]:
    """The server's time, and every slot with what is on it."""
    from trackside.bus import beats, keys
    from trackside.bus.client import now_ms
    from trackside.line import blocked_by
    from trackside.models import Breaker, BreakerState, Role

    slots = store.slots()
    breakers = store.breakers(slot.id for slot in slots)
    found = beats.read(store.client)
    now = now_ms(store.client)
    rows = []
    for slot in slots:
        breaker = breakers.get(slot.id, Breaker(slot=slot.id))
        beat = found.get(keys.deadline_member(Role.WORKER, slot.id))
        job = None if beat is None else beat.job
        resting = breaker.state is not BreakerState.CLOSED
        blocked = blocked_by(slot, beat)
        unused = "cordoned" if slot.cordoned else "resting" if resting else "blocked" if blocked else "free"
        state = "silent" if beat is None else "busy" if job else unused
        rows.append(
            {
                "id": slot.id,
                "host": slot.host,
                "kind": slot.kind,
                "state": state,
                "threads": slot.threads,
                "gpu_name": slot.gpu_name,
                "gpu_uuid": slot.gpu_uuid,
                "gpu_memory_mib": slot.gpu_memory_mib,
                "job": job,
                "attempt": None if beat is None else beat.attempt,
                "step": None if beat is None else beat.step,
                "total_steps": None if beat is None else beat.total,
                "steps_per_s": None if beat is None else beat.steps_per_s,
                "last_step_s": None if beat is None else beat.last_step_s(now),
                "cordoned": slot.cordoned,
                "cordon_reason": slot.cordon_reason,
                "blocked": blocked,
                "throttled": slot.throttled,
                "breaker": breaker.state.value,
                "breaker_failed": list(breaker.failed),
                "breaker_until_ms": breaker.until_ms,
            }
        )
    return now, rows
