"""What the supervisor does: each act one guarded transaction, safe to repeat and safe to be killed after.

The order inside an act is chosen so that dying between two steps leaves the first to be done again: RQ's leftovers go
first, the record last, because only the record says that the act is done.
"""

from __future__ import annotations

from typing import Any

from trackside import logs, retry
from trackside.bus.client import Pipeline
from trackside.config import Settings
from trackside.models import ACTIVE, Attempt, Job, JobState, Outcome, Slot
from trackside.store import Change, Store
from trackside_supervisor.recovery import Decision, Policy, decide


class Actions:
    """Acts on jobs through the store; `url` is where RQ's own connection goes."""

    def __init__(self, store: Store, settings: Settings, url: str) -> None:
        from trackside.bus import queue

        self._queue = queue
        self._rq = queue.rq_client(url)
        self._store = store
        self._log = logs.get()
        self._policy = Policy(
            poison_after=settings.poison_after,
            backoff_s=lambda failures: retry.backoff_s(
                failures, first_s=settings.backoff_first_s, max_s=settings.backoff_max_s
            ),
        )

    def assign(self, job: Job, slot: Slot) -> Job:
        """Give a queued job's next attempt to a slot."""

        def push(pipe: Pipeline, new: Job) -> None:
            self._queue.push(pipe, self._rq, new.id, new.attempt, slot.id)

        assigned = self._store.assign(job.id, slot, push)
        self._log.info("assigned", job=job.id, attempt=assigned.attempt, slot=assigned.slot)
        return assigned

    def requeue(self, job: Job) -> Job:
        """Let a job whose backoff has run out wait for a slot."""

        def turn(now_job: Job, now_ms: int) -> Change | None:
            if now_job.state is not JobState.WAITING or (now_job.retry_at_ms or 0) > now_ms:
                return None
            inputs = {"retry_at_ms": now_job.retry_at_ms}
            return self._store.moved(
                now_job, JobState.QUEUED, now_ms, cause="backoff over", detail="waits for a free slot", inputs=inputs
            )

        return self._store.change(job.id, turn)

    def end_lost(self, job: Job, attempt: Attempt, outcome: Outcome) -> Job:
        """Close an attempt that nobody can report any more."""
        self._queue.discard(self._rq, job.id, attempt.number, attempt.slot)
        ended = self._store.end_attempt(job.id, attempt.number, outcome)
        self._log.warning("attempt_lost", job=job.id, attempt=attempt.number, slot=attempt.slot, detail=outcome.detail)
        return ended

    def conclude(self, job: Job, attempt: Attempt, previous: Attempt | None) -> Job:
        """Decide what becomes of a job whose newest attempt has ended, and write it with its inputs."""
        made: list[Decision] = []

        def turn(now_job: Job, now_ms: int) -> Change | None:
            made.clear()
            over = now_job.attempt == attempt.number and now_job.slot is None
            if not over or now_job.state not in ACTIVE:
                return None
            decision = decide(now_job, attempt, previous, self._policy, now_ms)
            made.append(decision)
            fields: dict[str, Any] = {"failures": decision.failures, "barren": decision.barren}
            if decision.retry_at_ms is not None:
                fields["retry_at_ms"] = decision.retry_at_ms
            return self._store.moved(
                now_job, decision.state, now_ms, cause=decision.rule, detail=decision.detail, inputs=decision.inputs,
                **fields,
            )  # fmt: skip

        concluded = self._store.change(job.id, turn)
        for decision in made:
            self._log.info(
                "decided", job=job.id, attempt=attempt.number, rule=decision.rule, state=decision.state.value,
                **{name: value for name, value in decision.inputs.items() if name not in ("attempt", "state")},
            )  # fmt: skip
        return concluded
