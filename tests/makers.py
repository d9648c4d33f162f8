"""Records for tests that need some job, attempt, event or checkpoint and care about few of its fields."""

from __future__ import annotations

from typing import Any

from trackside.models import (
    Attempt,
    AttemptState,
    CheckpointRef,
    Event,
    EventKind,
    Job,
    JobSpec,
    JobState,
    Program,
    Slot,
)

SPEC = JobSpec(program=Program(kind="script", target="train.py"))
SLOT = Slot(id="h-cpu0", host="h", kind="cpu", storage="disk")


def a_job(job_id: str = "j", at_ms: int = 0, **fields: Any) -> Job:
    """A queued job that was submitted at `at_ms`."""
    known = {"name": job_id, "state": JobState.QUEUED, "spec": SPEC, "created_at_ms": at_ms, "changed_at_ms": at_ms}
    return Job(id=job_id, **{**known, **fields})


def an_attempt(number: int = 1, **fields: Any) -> Attempt:
    """An attempt that is given out to `SLOT`."""
    known = {"job": "j", "state": AttemptState.ASSIGNED, "slot": SLOT.id, "host": SLOT.host, "assigned_at_ms": 0}
    return Attempt(number=number, **{**known, **fields})


def an_event(kind: EventKind, at_ms: int, attempt: int | None = None, **fields: Any) -> Event:
    return Event(kind=kind, at_ms=at_ms, attempt=attempt, **{"job": "j", **fields})


def a_checkpoint(step: int, attempt: int = 1, **fields: Any) -> CheckpointRef:
    known = {"name": f"step-{step}-a{attempt}", "digest": "d", "storage": SLOT.storage}
    return CheckpointRef(step=step, attempt=attempt, **{**known, **fields})
