"""Jobs and attempts as the tests of the store bring them about, through the store itself."""

from __future__ import annotations

from makers import SLOT, SPEC
from trackside.bus.client import Pipeline
from trackside.models import Job, JobState
from trackside.store import Store


def push_nothing(_: Pipeline, __: Job) -> None:
    """Stands for RQ, which has its own tests."""


def started(store: Store, job_id: str = "j") -> Job:
    store.submit(job_id, job_id, SPEC)
    job = store.assign(job_id, SLOT, push_nothing)
    return store.claim(job_id, job.attempt, worker_pid=10)


def moved(store: Store, job_id: str, state: JobState) -> Job:
    return store.change(job_id, lambda job, now: store.moved(job, state, now, cause="test", detail=None))
