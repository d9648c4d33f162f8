"""Jobs and attempts as the tests of the store bring them about, through the store itself."""

from __future__ import annotations

from trackside.bus.client import Pipeline
from trackside.models import CheckpointRef, Job, JobSpec, JobState, Program, Slot
from trackside.store import Store

SPEC = JobSpec(program=Program(kind="script", target="train.py"))
SLOT = Slot(id="h-cpu0", host="h", kind="cpu", storage="disk")


def push_nothing(_: Pipeline, __: Job) -> None:
    """Stands for RQ, which has its own tests."""


def started(store: Store, job_id: str = "j") -> Job:
    store.submit(job_id, job_id, SPEC)
    job = store.assign(job_id, SLOT, push_nothing)
    return store.claim(job_id, job.attempt, worker_pid=10)


def moved(store: Store, job_id: str, state: JobState) -> Job:
    return store.change(job_id, lambda job, now: store.moved(job, state, now, cause="test", detail=None))


def a_checkpoint(step: int, attempt: int = 1) -> CheckpointRef:
    return CheckpointRef(name=f"step-{step}-a{attempt}", step=step, attempt=attempt, digest="d", storage="disk")
