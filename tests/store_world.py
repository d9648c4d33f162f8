"""Jobs and attempts as tests bring them about through the store itself, and what is then on record."""

from __future__ import annotations

from makers import SLOT, SPEC
from trackside.bus import streams
from trackside.bus.client import Pipeline
from trackside.models import Event, EventKind, Job, JobState
from trackside.store import Store


def push_nothing(_: Pipeline, __: Job) -> None:
    """Stands for RQ, which has its own tests."""


def started(store: Store, job_id: str = "j") -> Job:
    store.submit(job_id, job_id, SPEC)
    job = store.assign(job_id, SLOT, push_nothing)
    return store.claim(job_id, job.attempt, worker_pid=10)


def moved(store: Store, job_id: str, state: JobState, detail: str | None = None) -> Job:
    return store.change(job_id, lambda job, now: store.moved(job, state, now, cause="test", detail=detail))


def events_of(store: Store, job_id: str) -> list[Event]:
    return [event for _, event in streams.history(store.client, job_id)]


def output_of(store: Store, job_id: str) -> str:
    return b"".join(text for _, _, text in streams.output(store.client, job_id)).decode()


def folded(store: Store, job_id: str) -> JobState | None:
    """The state that the job's events lead to, one from the other."""
    state: JobState | None = None
    for event in events_of(store, job_id):
        if event.kind is EventKind.TRANSITION:
            assert event.old is state, f"{job_id}: the history has a gap"
        state = event.new or state
    return state
