"""One job's life as rows and facts ready to show: its story, its attempts, how they ended. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trackside import line, wording
from trackside.models import GOOD_ENDS, Attempt, Job, Outcome
from trackside.story import Sentence, obstacles, tell
from trackside_dashboard import text
from trackside_dashboard.snapshot import JobView, Snapshot

STORY_MAX: Final = 300  # sentences shown; `trackside why` has them all


def story(snapshot: Snapshot, job: Job, view: JobView, now_ms: int) -> list[Sentence]:
    """The job's story, oldest first, and what comes next."""
    place = line.places(snapshot.jobs.values()).get(job.id)
    parents = {name: snapshot.jobs[name] for name in job.spec.after if name in snapshot.jobs}
    unled = line.unled(snapshot.beats)
    told = tell(job, view.attempts, view.history, now_ms, place=place, parents=parents, unled=unled)
    return told[:1] + told[1:][-STORY_MAX:]


def kept_off(snapshot: Snapshot, job: Job, now_ms: int) -> list[str]:
    """What keeps a job that is in line off each slot, a sentence each."""
    if not line.is_in_line(job):
        return []
    return obstacles(job, snapshot.slots, snapshot.breakers, snapshot.beats, now_ms)


def bad_end(view: JobView) -> tuple[Attempt, str] | None:
    """The newest attempt that ended badly, and what is kept of it: a traceback, or what it was judged by."""
    for attempt in reversed(view.attempts):
        if attempt.outcome is not None and attempt.outcome.reason not in GOOD_ENDS:
            return attempt, text.block(_evidence(attempt.outcome))
    return None


def _evidence(out: Outcome) -> str:
    failure = out.failure
    if failure is not None and failure.traceback:  # its last output has it too
        return failure.traceback
    said = wording.error(failure) if failure is not None else ""
    parts = (out.detail or "", said if said != out.detail else "", *out.evidence)
    return "\n\n".join(part.strip("\n") for part in parts if part)


def restarts(attempts: Iterable[Attempt]) -> list[dict[str, object]]:
    """Where each attempt but the first began: step, time and what it went on from."""
    return [
        {
            "attempt": attempt.number,
            "step": (attempt.resumed_step or 0) + 1,
            "at_ms": attempt.started_at_ms or attempt.assigned_at_ms,
            "label": f"attempt {attempt.number}",
        }
        for attempt in attempts
        if attempt.number > 1
    ]


def attempt_rows(view: JobView, now_ms: int) -> list[dict[str, object]]:
    """The attempts of a job, newest first."""
    rows: list[dict[str, object]] = []
    for a in reversed(view.attempts):
        out = a.outcome
        start, ran_ms = a.started_at_ms, wording.ran_ms(a, now_ms)
        steps = f"{text.count(out.first_step)} … {text.count(out.last_step)}" if out is not None else text.UNKNOWN
        rows.append(
            {
                "attempt": a.number,
                "state": a.state.value,
                "reason": out.reason.value.replace("_", " ") if out is not None else "",
                "end": text.plain(wording.end(a), 300),
                "slot": text.plain(a.slot, 60),
                "started": start,
                "ran": text.span(ran_ms / 1000) if ran_ms is not None else text.UNKNOWN,
                "steps": steps,
                "resumed": f"step {text.count(a.resumed_step)}" if a.resumed_step is not None else "",
                "pid": a.pid,
                "noticed": text.UNKNOWN
                if out is None or out.noticed_after_ms is None
                else text.unit(out.noticed_after_ms, "ms"),
            }
        )
    return rows
