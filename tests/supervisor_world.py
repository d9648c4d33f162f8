"""A small world for the supervisor's pure core: records as the bus holds them, changed as the store does, and a clock.

Every decision in it is the product's own (placement, parents, silence, breakers, recovery), and each is made again from
its recorded inputs at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from trackside.models import (
    ACTIVE,
    Attempt,
    AttemptState,
    Beat,
    Breaker,
    BreakerState,
    CheckpointRef,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
    Role,
    Slot,
)
from trackside_supervisor import breaker as breakers_
from trackside_supervisor import parents, placement
from trackside_supervisor.actions import rolled_back
from trackside_supervisor.placement import free_slots, place
from trackside_supervisor.recovery import HOST_FAULTS, SELFTEST, Decision, Policy, decide, replay
from trackside_supervisor.watch import Facts, Limits, Sight, judge, lost

TTL_MS: Final = 4000
LIMITS: Final = Limits(margin_ms=1000, claim_ms=9000)
POISON_AFTER: Final = 3
BREAKER_AFTER: Final = 2
REST_S: Final = 5.0


class World:
    """Two slots, any jobs, one clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.slots = [Slot(id=f"h{n}-cpu0", host=f"h{n}", kind="cpu", storage="disk") for n in range(2)]
        self.breakers = {slot.id: Breaker(slot=slot.id) for slot in self.slots}
        self.pids = {slot.id: 100 + n for n, slot in enumerate(self.slots)}
        self.deadlines = {slot.id: self.now_ms + TTL_MS for slot in self.slots}
        self.began_ms = dict.fromkeys(self.pids, 0)
        self.silent: set[str] = set()
        self.clear = True  # whether the supervisor has seen without a gap for long enough
        self.ends: dict[str, list[JobState]] = {}
        self.paused: dict[str, Job] = {}  # as they were when they became so
        self.not_before_ms: dict[str, int] = {}
        self.jitter = 1.0
        self.steps: dict[str, int] = {}

    # -- what the store does ---------------------------------------------------------------------------------------

    def put(self, job_id: str, **spec: Any) -> None:
        program = spec.pop("program", Program(kind="script", target="t.py"))
        self.jobs[job_id] = Job(
            id=job_id, name=job_id, state=JobState.QUEUED, spec=JobSpec(program=program, **spec),
            created_at_ms=self.now_ms, changed_at_ms=self.now_ms,
        )  # fmt: skip

    def move(self, job: Job, state: JobState, **fields: Any) -> None:
        assert job.state.may_become(state), f"{job.state} -> {state}"
        self.jobs[job.id] = replace(job, state=state, **{"retry_at_ms": None, **fields})
        if state.terminal:
            self.ends.setdefault(job.id, []).append(state)
        if state is JobState.PAUSED:
            self.paused[job.id] = self.jobs[job.id]

    def resume(self, job: Job) -> None:
        del self.paused[job.id]
        self.not_before_ms.pop(job.id, None)  # whoever resumes a job does not wait for its backoff
        self.move(job, JobState.QUEUED, host_faults=0)

    def claim_of(self, job: Job) -> None:
        attempt = self.current(job)
        assert attempt is not None
        self.attempts[job.id, job.attempt] = replace(
            attempt, state=AttemptState.RUNNING, worker_pid=self.pids[attempt.slot], started_at_ms=self.now_ms,
            resumed_step=job.checkpoints[0].step if job.checkpoints else None,
        )  # fmt: skip
        if job.state is JobState.QUEUED:
            self.move(job, JobState.RUNNING)

    def accept(self, job: Job, step: int) -> None:
        ref = CheckpointRef(
            name=f"step-{step}-a{job.attempt}", step=step, attempt=job.attempt, digest="d", storage="disk"
        )
        self.jobs[job.id] = replace(job, checkpoints=(ref, *job.checkpoints)[:3], failures=0, barren=0, host_faults=0)

    def current(self, job: Job) -> Attempt | None:
        return self.attempts.get((job.id, job.attempt))

    def end(self, job: Job, outcome: Outcome) -> None:
        attempt = self.current(job)
        assert attempt is not None
        if attempt.state is not AttemptState.ENDED:
            self.attempts[job.id, job.attempt] = replace(attempt, state=AttemptState.ENDED, outcome=outcome)
            self.jobs[job.id] = replace(job, slot=None, reason=outcome.reason)

    # -- what the supervisor does ----------------------------------------------------------------------------------

    def tick(self) -> None:
        beats = {f"{Role.WORKER}:{slot.id}": self.beat(slot) for slot in self.slots}
        deadlines = {f"{Role.WORKER}:{slot}": at for slot, at in self.deadlines.items()}
        sight = Sight(now_ms=self.now_ms, deadlines=deadlines, beats=beats, clear=self.clear)
        for job_id in sorted(self.jobs):
            self.settle(self.jobs[job_id], sight)
        self.tend_breakers()
        alive = {name: beat for name, beat in beats.items() if deadlines[name] >= self.now_ms}
        live = [job for job in self.jobs.values() if not job.state.terminal]
        ready = [job for job in live if not parents.waits(job) or self.verdict(job).answer == "ready"]
        for job, slot, inputs in place(ready, free_slots(self.slots, live, alive), self.breakers):
            assert placement.replay(inputs) == (job.id, slot.id)
            self.assign(job, slot)

    def beat(self, slot: Slot) -> Beat | None:
        if self.deadlines[slot.id] < self.now_ms:
            return None
        carried = next((job.id for job in self.jobs.values() if job.slot == slot.id and job.state in ACTIVE), None)
        return Beat(
            role=Role.WORKER, name=slot.id, host=slot.host, pid=self.pids[slot.id],
            started_at_ms=self.began_ms[slot.id], at_ms=0, slot=slot.id, job=carried,
        )  # fmt: skip

    def settle(self, job: Job, sight: Sight) -> None:
        if job.state is JobState.WAITING:
            if self.now_ms >= (job.retry_at_ms or 0):
                self.move(job, JobState.QUEUED)
            return
        if parents.waits(job):
            verdict = self.verdict(job)
            assert parents.replay(verdict.inputs) == verdict
            if verdict.answer == "failed":
                self.move(job, JobState.FAILED)
            return
        attempt = self.current(job)
        if attempt is None or (job.slot is None and job.state not in ACTIVE):
            return
        loss = lost(job, attempt, sight, LIMITS)
        if loss is not None:
            assert sight.clear, "somebody was taken for lost by a supervisor that had not seen clearly"
            assert judge(Facts.from_inputs(loss.inputs)) == loss
            self.end(job, loss.outcome)
        job, attempt = self.jobs[job.id], self.attempts[job.id, job.attempt]
        if attempt.state is AttemptState.ENDED and job.state in ACTIVE and job.slot is None:
            self.conclude(job, attempt)

    def verdict(self, job: Job) -> parents.Verdict:
        return parents.verdict(job, {parent: self.jobs[parent].state for parent in job.spec.after})

    def conclude(self, job: Job, attempt: Attempt) -> None:
        policy = Policy(poison_after=POISON_AFTER, backoff_s=lambda n: self.jitter * min(300.0, 2.0 * 2 ** (n - 1)))
        before = self.attempts.get((job.id, attempt.number - 1))
        decision = decide(job, attempt, before, policy, self.now_ms)
        self.check_decision(job, attempt, decision)
        fields: dict[str, Any] = {
            "failures": decision.failures, "barren": decision.barren, "host_faults": decision.host_faults,
            "retry_at_ms": decision.retry_at_ms,
        }  # fmt: skip
        if decision.rollback_to is not None:
            fields |= rolled_back(job, decision)
            self.steps[job.id] = decision.rollback_to
        self.move(job, decision.state, **fields)
        if decision.retry_at_ms is not None:
            self.not_before_ms[job.id] = decision.retry_at_ms
        assert attempt.outcome is not None
        self.see_end(attempt, attempt.outcome.reason, progressed=bool(decision.inputs["progressed"]))

    def check_decision(self, job: Job, attempt: Attempt, decision: Decision) -> None:
        again = replay(orjson.loads(orjson.dumps(decision.inputs)), self.now_ms)
        assert again == decision
        assert attempt.outcome is not None
        if decision.retry_at_ms is not None:
            row = job.host_faults if decision.inputs["struck"] else job.barren + 1
            assert 0 <= decision.retry_at_ms - self.now_ms <= 2000 * 2 ** (row - 1), "beyond the backoff's envelope"
        ours = job.state is JobState.RUNNING and job.spec.program != SELFTEST
        if attempt.outcome.reason in HOST_FAULTS and ours:
            assert decision.failures == job.failures, "a host's fault used up a retry"
            at_once = decision.inputs["progressed"] or not decision.inputs["struck"] or job.host_faults == 0
            assert (decision.state is JobState.QUEUED) == at_once
        if decision.rollback_to is not None:
            bad_step = attempt.outcome.bad_step or 0
            assert decision.rollback_to < bad_step, "it went back to where it had diverged already"
        if job.state is JobState.CANCELLING:
            assert decision.state in (JobState.CANCELLED, JobState.SUCCEEDED)

    def assign(self, job: Job, slot: Slot) -> None:
        assert self.now_ms >= self.not_before_ms.get(job.id, 0), "a retry before its backoff was over"
        breaker = self.breakers[slot.id]
        assert breaker.state is BreakerState.CLOSED or breaker.probe == job.id, "work for a slot that rests"
        if job.attempt == 0:
            ran_before = [self.jobs[parent].state for parent in job.spec.after]
            assert set(ran_before) <= {JobState.SUCCEEDED}, "it was given out before its parents had succeeded"
        number = job.attempt + 1
        self.jobs[job.id] = replace(job, attempt=number, slot=slot.id)
        self.attempts[job.id, number] = Attempt(
            job=job.id, number=number, state=AttemptState.ASSIGNED, slot=slot.id, host=slot.host,
            assigned_at_ms=self.now_ms,
        )  # fmt: skip

    # -- breakers --------------------------------------------------------------------------------------------------

    def see_end(self, attempt: Attempt, reason: Reason, *, progressed: bool) -> None:
        """What a slot's breaker makes of the end of an attempt on it."""
        before = self.breakers[attempt.slot]
        limits = breakers_.drawn(self.limits(), before)
        after = breakers_.observe(before, attempt.job, reason, limits, self.now_ms, progressed=progressed)
        happened = {"job": attempt.job, "reason": reason.value, "progressed": progressed}
        inputs = breakers_.inputs(before, limits, self.now_ms, **happened)
        assert breakers_.replay("its end", orjson.loads(orjson.dumps(inputs))) == after
        self.breakers[attempt.slot] = after

    def tend_breakers(self) -> None:
        for slot in self.slots:
            breaker = self.breakers[slot.id]
            if breakers_.rested(breaker, self.now_ms):
                probe = breakers_.probe_id(breaker)
                self.put(probe, program=SELFTEST, retries=0, slot=slot.id, priority="high")
                self.breakers[slot.id] = breakers_.probing(breaker, probe)
            elif breaker.state is BreakerState.PROBING and self.jobs[breaker.probe or ""].state.terminal:
                self.breakers[slot.id] = breakers_.unanswered(breaker, self.limits(), self.now_ms)

    def limits(self) -> breakers_.Limits:
        return breakers_.Limits(after=BREAKER_AFTER, rest_s=lambda openings: REST_S * openings)
