"""What the supervisor does: each act one guarded transaction, safe to repeat and safe to be killed after.

The order inside an act is chosen so that dying between two steps leaves the first to be done again: RQ's leftovers go
first, the record last, because only the record says that the act is done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trackside import logs, retry
from trackside.bus.client import Pipeline
from trackside.config import Settings
from trackside.line import FREE_SLOT
from trackside.models import (
    ACTIVE,
    Attempt,
    Breaker,
    BreakerState,
    EventKind,
    Job,
    JobSpec,
    JobState,
    Reason,
    Slot,
)
from trackside.store import Change, Store
from trackside_supervisor import breaker as breakers_
from trackside_supervisor import parents
from trackside_supervisor.crashpoints import here
from trackside_supervisor.recovery import BACKOFF_OVER, SELFTEST, Decision, Policy, decide
from trackside_supervisor.watch import Loss


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
        self._limits = breakers_.Limits(
            after=settings.breaker_after,
            rest_s=lambda openings: retry.rest_s(
                openings, first_s=settings.breaker_first_s, max_s=settings.breaker_max_s
            ),
        )
        self.breakers: dict[str, Breaker] = {}  # as last read or written, by slot

    def assign(self, job: Job, slot: Slot, inputs: dict[str, Any]) -> Job:
        """Give a queued job's next attempt to a slot; `inputs` are what it was placed by."""

        def push(pipe: Pipeline, new: Job) -> None:
            self._queue.push(pipe, self._rq, new.id, new.attempt, slot.id)

        here("before assign")
        assigned = self._store.assign(job.id, slot, push, inputs=inputs)
        here("after assign")
        self._log.info("assigned", job=job.id, attempt=assigned.attempt, slot=assigned.slot)
        return assigned

    def requeue(self, job: Job) -> Job:
        """Let a job whose backoff has run out wait for a slot."""

        def turn(now_job: Job, now_ms: int) -> Change | None:
            if now_job.state is not JobState.WAITING or (now_job.retry_at_ms or 0) > now_ms:
                return None
            inputs = {"retry_at_ms": now_job.retry_at_ms}
            return self._store.moved(
                now_job, JobState.QUEUED, now_ms, cause=BACKOFF_OVER, detail=FREE_SLOT, inputs=inputs
            )

        here("before requeue")
        queued = self._store.change(job.id, turn)
        here("after requeue")
        return queued

    def heed_parents(self, job: Job, verdict: parents.Verdict) -> Job:
        """Fail a job whose parent did not succeed; say that one waits for a slot now that all have."""

        def turn(now_job: Job, now_ms: int) -> Change | None:
            if not parents.waits(now_job):
                return None
            if verdict.answer == "failed":
                state = verdict.state and verdict.state.value
                inputs = {"parent": verdict.parent, "parent_state": state, **verdict.inputs}
                return self._store.moved(
                    now_job, JobState.FAILED, now_ms, cause=parents.RULE, detail=verdict.detail, inputs=inputs
                )
            if now_job.detail == FREE_SLOT:
                return None
            event = self._store.job_event(now_job, EventKind.NOTE, now_ms, cause=parents.SUCCEEDED, **verdict.inputs)
            return Change(job=replace(now_job, detail=FREE_SLOT), events=(event,))

        if verdict.answer == "ready" and job.detail == FREE_SLOT:
            return job
        here("before parents")
        heeded = self._store.change(job.id, turn)
        here("after parents")
        return heeded

    def end_lost(self, job: Job, attempt: Attempt, loss: Loss) -> Job:
        """Close an attempt that nobody can report any more."""
        here("before discard")
        self._queue.discard(self._rq, job.id, attempt.number, attempt.slot)
        here("after discard")
        ended = self._store.end_attempt(job.id, attempt.number, loss.outcome, rule=loss.rule, inputs=loss.inputs)
        here("after end")
        self._log.warning(
            "attempt_lost", job=job.id, attempt=attempt.number, slot=attempt.slot, rule=loss.rule, **loss.inputs
        )
        return ended

    def conclude(self, job: Job, attempt: Attempt, previous: Attempt | None) -> Job:
        """Decide what becomes of a job whose newest attempt has ended, and of its slot's breaker, from one look."""
        made: list[Decision] = []
        reason = attempt.outcome.reason if attempt.outcome else Reason.LOST
        after = Breaker(slot=attempt.slot)

        def turn(now_job: Job, before: Breaker, now_ms: int) -> Change | None:
            nonlocal after
            made.clear()
            after = before
            over = now_job.attempt == attempt.number and now_job.slot is None
            if not over or now_job.state not in ACTIVE:
                return None
            decision = decide(now_job, attempt, previous, self._policy, now_ms)
            made.append(decision)
            fields: dict[str, Any] = {
                "failures": decision.failures,
                "barren": decision.barren,
                "host_faults": decision.host_faults,
            }
            if decision.retry_at_ms is not None:
                fields["retry_at_ms"] = decision.retry_at_ms
            if decision.rollback_to is not None:
                fields |= rolled_back(now_job, decision)
            change = self._store.moved(
                now_job, decision.state, now_ms, cause=decision.rule, detail=decision.detail, inputs=decision.inputs,
                **fields,
            )  # fmt: skip
            progressed = bool(decision.inputs.get("progressed"))
            limits = breakers_.drawn(self._limits, before)
            after = breakers_.observe(before, job.id, reason, limits, now_ms, progressed=progressed)
            happened = {"job": job.id, "reason": reason.value, "progressed": progressed}
            inputs = breakers_.inputs(before, limits, now_ms, **happened)
            return change if after == before else self._with_breaker(change, before, after, inputs)

        here("before conclude")
        concluded = self._store.change_with_breaker(job.id, attempt.slot, turn)
        here("after conclude")
        self.breakers[attempt.slot] = after
        for decision in made:
            self._log.info(
                "decided", job=job.id, attempt=attempt.number, rule=decision.rule, state=decision.state.value,
                **{name: value for name, value in decision.inputs.items() if name not in ("attempt", "state")},
            )  # fmt: skip
        return concluded

    def _with_breaker(self, change: Change, old: Breaker, new: Breaker, inputs: dict[str, Any]) -> Change:
        """The same change with the slot's breaker in its transaction, so that no end counts twice or not at all."""
        told = change.events
        if new.state is not old.state:
            event = self._store.slot_event(
                new.slot, inputs["now_ms"], cause=f"breaker {new.state}", job=change.job.id, reason=inputs["reason"],
                failed=list(new.failed or old.failed), openings=new.openings, until_ms=new.until_ms, inputs=inputs,
            )  # fmt: skip
            told = (*told, event)
        return replace(change, events=told, also=lambda pipe: self._store.write_breaker(pipe, new))

    # -- breakers --------------------------------------------------------------------------------------------------

    def tend_breakers(self, slots: list[Slot], now_ms: int) -> list[Job]:
        """Send a self-test to each slot that has rested; returns the self-tests' jobs."""
        self.breakers = self._store.breakers(slot.id for slot in slots)
        sent: list[Job] = []
        for slot in slots:
            breaker = self.breakers.get(slot.id)
            if breaker is None or slot.cordoned:
                continue
            if breakers_.rested(breaker, now_ms):
                sent.append(self._probe(breaker, slot, now_ms))
            elif breaker.state is BreakerState.PROBING and self._is_over(breaker.probe or ""):
                limits = breakers_.drawn(self._limits, breaker)
                inputs = breakers_.inputs(breaker, limits, now_ms)
                again = breakers_.unanswered(breaker, limits, now_ms)
                self._move(breaker, again, cause=breakers_.WENT_AWAY, inputs=inputs)
        return sent

    def _probe(self, breaker: Breaker, slot: Slot, now_ms: int) -> Job:
        here("before probe")
        spec = JobSpec(program=SELFTEST, device=slot.kind, retries=0, slot=slot.id, priority="high")
        job = self._store.submit(breakers_.probe_id(breaker), "self-test", spec)
        here("after probe submitted")
        inputs = breakers_.inputs(breaker, None, now_ms)
        self._move(breaker, breakers_.probing(breaker, job.id), cause=breakers_.RESTED, job=job.id, inputs=inputs)
        here("after probe")
        return job

    def _is_over(self, job_id: str) -> bool:
        return all(job.state.terminal for job in self._store.jobs([job_id]))

    def _move(self, old: Breaker, new: Breaker, *, cause: str, inputs: dict[str, Any], **data: Any) -> None:
        facts = {"openings": new.openings, "until_ms": new.until_ms, **data}
        if self._store.move_breaker(old, new, cause=cause, inputs=inputs, **facts):
            self.breakers[new.slot] = new
            self._log.warning(cause.replace(" ", "_"), slot=new.slot, **facts)


def rolled_back(job: Job, decision: Decision) -> dict[str, Any]:
    """The record's fields after a going back: the checkpoints after it are not resumed from any more."""
    to_step, inputs = decision.rollback_to or 0, decision.inputs
    kept = tuple(checkpoint for checkpoint in job.checkpoints if checkpoint.step <= to_step)
    return {"checkpoints": kept, "bad_step": inputs["bad_step"], "rollbacks": inputs["rollbacks"] + 1}
