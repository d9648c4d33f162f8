"""A store that keeps what was asked of it and how it answered: the client's side of the history that is judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from trackside.bus.client import Client
from trackside.errors import TracksideError
from trackside.models import CheckpointRef, Job, JobSpec
from trackside.oracle import Operation
from trackside.store import Store

T = TypeVar("T")


class RememberingStore(Store):
    """Submits, cancels, pauses and resumes, and writes each of them down; append only."""

    def __init__(self, client: Client, *, by: str) -> None:
        super().__init__(client, by=by)
        self.operations: list[Operation] = []

    def submit(
        self,
        job_id: str,
        name: str,
        spec: JobSpec,
        snapshot: bytes | None = None,
        checkpoints: tuple[CheckpointRef, ...] = (),
    ) -> Job:
        """As the store does."""
        ask = super().submit
        return self.asked("submit", job_id, lambda: ask(job_id, name, spec, snapshot, checkpoints))

    def cancel(self, job_id: str) -> Job:
        """As the store does."""
        ask = super().cancel
        return self.asked("cancel", job_id, lambda: ask(job_id))

    def pause(self, job_id: str) -> Job:
        """As the store does."""
        ask = super().pause
        return self.asked("pause", job_id, lambda: ask(job_id))

    def resume(self, job_id: str, checkpoint: str | None = None) -> Job:
        """As the store does."""
        ask = super().resume
        return self.asked("resume", job_id, lambda: ask(job_id, checkpoint))

    def asked(self, what: str, job_id: str, ask: Callable[[], T]) -> T:
        """Ask, and write down what was asked and the answer; one that was not heard may have been done."""
        facts: dict[str, Any] = {"at_ms": time.time_ns() // 1_000_000, "what": what, "job": job_id}
        try:
            answer = ask()
        except TracksideError as error:
            self.operations.append(Operation(**facts, error=str(error)))
            raise
        self.operations.append(Operation(**facts))
        return answer

    def of(self, job_ids: list[str]) -> tuple[Operation, ...]:
        """What was asked of these jobs."""
        return tuple(each for each in self.operations if each.job in job_ids)
