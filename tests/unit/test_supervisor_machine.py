"""The supervisor's pure core in a small world with a clock of its own: whatever happens, in whatever order.

The world holds records as the bus does and changes them as the store does; hypothesis chooses what happens. Every
decision is the product's own: placement, silence, recovery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trackside.models import (
    ACTIVE,
    Attempt,
    AttemptState,
    Beat,
    CheckpointRef,
    Failure,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
    Role,
    Slot,
)
from trackside_supervisor import placement
from trackside_supervisor.placement import free_slots, place
from trackside_supervisor.recovery import HOST_FAULTS, MAX_HOST_FAULTS, Decision, Policy, decide, replay
from trackside_supervisor.watch import Facts, Limits, Sight, judge, lost

F = TypeVar("F", bound=Callable[..., Any])
TTL_MS: Final = 4000
LIMITS: Final = Limits(margin_ms=1000, claim_ms=9000)
POISON_AFTER: Final = 3
CRASHES: Final = (
    Reason.KILLED, Reason.USER_ERROR, Reason.STALLED, Reason.CUDA_ERROR, Reason.OOM_HOST, Reason.GPU_LOST,
    Reason.PREEMPTED,
)  # fmt: skip


def has(state: AttemptState) -> Callable[[F], F]:
    """A rule needs a job whose attempt is in this state."""
    return precondition(lambda self: bool(self.able(state)))


class Core(RuleBasedStateMachine):
    """Two slots, a few jobs, one clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1_000_000
        self.jobs: dict[str, Job] = {}
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.slots = [Slot(id=f"h{n}-cpu0", host=f"h{n}", kind="cpu", storage="disk") for n in range(2)]
        self.pids = {slot.id: 100 + n for n, slot in enumerate(self.slots)}
        self.deadlines = {slot.id: self.now_ms + TTL_MS for slot in self.slots}
        self.began_ms = dict.fromkeys(self.pids, 0)
        self.silent: set[str] = set()
        self.ends: dict[str, list[JobState]] = {}
        self.not_before_ms: dict[str, int] = {}
        self.jitter = 1.0
        self.steps: dict[str, int] = {}

    # -- what the store does ---------------------------------------------------------------------------------------

    def move(self, job: Job, state: JobState, **fields: Any) -> None:
        assert job.state.may_become(state), f"{job.state} -> {state}"
        if state.terminal:
            self.ends.setdefault(job.id, []).append(state)
        self.jobs[job.id] = replace(job, state=state, **{"retry_at_ms": None, **fields})

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
        sight = Sight(now_ms=self.now_ms, deadlines=deadlines, beats=beats, clear=True)
        for job_id in sorted(self.jobs):
            self.settle(self.jobs[job_id], sight)
        alive = {name: beat for name, beat in beats.items() if deadlines[name] >= self.now_ms}
        live = [job for job in self.jobs.values() if not job.state.terminal]
        for job, slot, inputs in place(live, free_slots(self.slots, live, alive)):
            assert placement.replay(inputs) == (job.id, slot.id)
            self.assign(job, slot)

    def beat(self, slot: Slot) -> Beat | None:
        if self.deadlines[slot.id] < self.now_ms:
            return None
        carried = next((job.id for job in self.jobs.values() if job.slot == slot.id and job.state in ACTIVE), None)
        return Beat(
            role=Role.WORKER, name=slot.id, host=slot.host, pid=self.pids[slot.id],
            started_at_ms=self.began_ms[slot.id], at_ms=0,
            slot=slot.id, job=carried,
        )  # fmt: skip

    def settle(self, job: Job, sight: Sight) -> None:
        if job.state is JobState.WAITING:
            if self.now_ms >= (job.retry_at_ms or 0):
                self.move(job, JobState.QUEUED)
            return
        attempt = self.current(job)
        if attempt is None or (job.slot is None and job.state not in ACTIVE):
            return
        loss = lost(job, attempt, sight, LIMITS)
        if loss is not None:
            assert judge(Facts.from_inputs(loss.inputs)) == loss
            self.end(job, loss.outcome)
        job, attempt = self.jobs[job.id], self.attempts[job.id, job.attempt]
        if attempt.state is AttemptState.ENDED and job.state in ACTIVE and job.slot is None:
            self.conclude(job, attempt)

    def conclude(self, job: Job, attempt: Attempt) -> None:
        policy = Policy(poison_after=POISON_AFTER, backoff_s=lambda n: self.jitter * min(300.0, 2.0 * 2 ** (n - 1)))
        before = self.attempts.get((job.id, attempt.number - 1))
        decision = decide(job, attempt, before, policy, self.now_ms)
        self.check_decision(job, attempt, decision)
        fields = {
            "failures": decision.failures, "barren": decision.barren, "host_faults": decision.host_faults,
            "retry_at_ms": decision.retry_at_ms,
        }  # fmt: skip
        self.move(job, decision.state, **fields)
        if decision.retry_at_ms is not None:
            self.not_before_ms[job.id] = decision.retry_at_ms

    def check_decision(self, job: Job, attempt: Attempt, decision: Decision) -> None:
        again = replay(decision.inputs, self.now_ms)
        assert (again.state, again.rule, again.retry_at_ms) == (decision.state, decision.rule, decision.retry_at_ms)
        assert attempt.outcome is not None
        if decision.retry_at_ms is not None:
            row = job.host_faults if decision.inputs["struck"] else job.barren + 1
            assert 0 <= decision.retry_at_ms - self.now_ms <= 2000 * 2 ** (row - 1), "beyond the backoff's envelope"
        if attempt.outcome.reason in HOST_FAULTS and job.state is JobState.RUNNING:
            assert decision.failures == job.failures, "a host's fault used up a retry"
            at_once = decision.inputs["progressed"] or not decision.inputs["struck"] or job.host_faults == 0
            assert (decision.state is JobState.QUEUED) == at_once
        if job.state is JobState.CANCELLING:
            assert decision.state in (JobState.CANCELLED, JobState.SUCCEEDED)

    def assign(self, job: Job, slot: Slot) -> None:
        assert self.now_ms >= self.not_before_ms.get(job.id, 0), "a retry before its backoff was over"
        number = job.attempt + 1
        self.jobs[job.id] = replace(job, attempt=number, slot=slot.id)
        self.attempts[job.id, number] = Attempt(
            job=job.id, number=number, state=AttemptState.ASSIGNED, slot=slot.id, host=slot.host,
            assigned_at_ms=self.now_ms,
        )  # fmt: skip

    # -- what happens ----------------------------------------------------------------------------------------------

    @initialize(jitter=st.floats(0.0, 1.0))
    def begin(self, jitter: float) -> None:
        self.jitter = jitter

    @precondition(lambda self: len(self.jobs) < 4)
    @rule(retries=st.integers(0, 4), priority=st.sampled_from(["high", "normal", "low"]))
    def submit(self, retries: int, priority: Any) -> None:
        job_id = f"job-{len(self.jobs)}"
        spec = JobSpec(program=Program(kind="script", target="t.py"), retries=retries, priority=priority)
        self.jobs[job_id] = Job(
            id=job_id, name=job_id, state=JobState.QUEUED, spec=spec, created_at_ms=self.now_ms,
            changed_at_ms=self.now_ms,
        )  # fmt: skip

    @rule(ms=st.sampled_from([10, 100, 1000, 3000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        for slot in self.slots:
            if slot.id not in self.silent:
                self.deadlines[slot.id] = self.now_ms + TTL_MS
        self.tick()

    @has(AttemptState.ASSIGNED)
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        self.do_claim(self.pick(data, AttemptState.ASSIGNED))

    def do_claim(self, job: Job) -> None:
        attempt = self.current(job)
        assert attempt is not None
        self.attempts[job.id, job.attempt] = replace(
            attempt, state=AttemptState.RUNNING, worker_pid=self.pids[attempt.slot], started_at_ms=self.now_ms
        )
        if job.state is JobState.QUEUED:
            self.move(job, JobState.RUNNING)

    @has(AttemptState.RUNNING)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        """A newer checkpoint is accepted."""
        job = self.pick(data, AttemptState.RUNNING)
        step = self.steps[job.id] = self.steps.get(job.id, 0) + 10
        ref = CheckpointRef(name=f"step-{step}", step=step, attempt=job.attempt, digest="d", storage="disk")
        self.jobs[job.id] = replace(job, checkpoints=(ref, *job.checkpoints)[:3], failures=0, barren=0, host_faults=0)

    @has(AttemptState.RUNNING)
    @rule(data=st.data(), reason=st.sampled_from(CRASHES), step=st.integers(0, 2))
    def crash(self, data: st.DataObject, reason: Reason, step: int) -> None:
        job = self.pick(data, AttemptState.RUNNING)
        failure = Failure(type="ValueError", message="x") if reason is Reason.USER_ERROR else None
        self.end(job, Outcome(reason=reason, failure=failure, last_step=step))

    @precondition(lambda self: bool(self.live()))
    @rule(data=st.data(), times=st.integers(1, 6))
    def crash_again_and_again(self, data: st.DataObject, times: int) -> None:
        """A program that dies whenever it is started, before it has saved anything."""
        job_id = data.draw(st.sampled_from(self.live())).id
        for _ in range(times * 4):
            job = self.jobs[job_id]
            attempt = self.current(job)
            if attempt is not None and attempt.state is AttemptState.ASSIGNED and attempt.slot not in self.silent:
                self.do_claim(job)
                self.end(self.jobs[job_id], Outcome(reason=Reason.KILLED))
            self.time_passes(3000)

    @has(AttemptState.RUNNING)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.end(self.pick(data, AttemptState.RUNNING), Outcome(reason=Reason.SUCCEEDED))

    @precondition(lambda self: len(self.silent) < 2)
    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        """Its agent reports the end and starts another."""
        slot = data.draw(st.sampled_from([slot.id for slot in self.slots if slot.id not in self.silent]))
        self.pids[slot] += 100
        for job in list(self.jobs.values()):
            attempt = self.current(job)
            if job.slot == slot and attempt is not None and attempt.state is AttemptState.RUNNING:
                self.end(job, Outcome(reason=Reason.KILLED, signal="SIGKILL"))

    @rule(data=st.data())
    def host_falls_silent(self, data: st.DataObject) -> None:
        self.silent.add(data.draw(st.sampled_from([slot.id for slot in self.slots])))

    @precondition(lambda self: bool(self.silent))
    @rule(restarted=st.booleans())
    def host_returns(self, restarted: bool) -> None:
        """With its workers, or with new ones that know nothing of what the old ones carried."""
        slot = sorted(self.silent)[0]
        self.silent.remove(slot)
        if restarted:
            self.pids[slot] += 100
            self.began_ms[slot] = self.now_ms

    @precondition(lambda self: bool(self.live()))
    @rule(data=st.data(), wish=st.sampled_from(["cancel", "pause", "resume"]))
    def wish(self, data: st.DataObject, wish: str) -> None:
        job = data.draw(st.sampled_from(self.live()))
        runs = job.slot is not None
        if wish == "cancel" and job.state not in (JobState.CANCELLING, JobState.CANCELLED):
            self.move(job, JobState.CANCELLING if runs or job.state in ACTIVE else JobState.CANCELLED)
        elif wish == "pause" and not runs and job.state.may_become(JobState.PAUSED) and job.state not in ACTIVE:
            self.move(job, JobState.PAUSED)
        elif wish == "pause" and runs and job.state is JobState.RUNNING:
            self.move(job, JobState.PAUSING)
        elif wish == "resume" and job.state is JobState.PAUSED:
            self.move(job, JobState.QUEUED)

    def pick(self, data: st.DataObject, state: AttemptState) -> Job:
        return data.draw(st.sampled_from(self.able(state)))

    def able(self, state: AttemptState) -> list[Job]:
        """Jobs whose current attempt is in this state, with a worker that still knows of it."""
        return [
            job
            for job in self.jobs.values()
            if (attempt := self.current(job))
            and attempt.state is state
            and attempt.slot not in self.silent
            and attempt.worker_pid in (None, self.pids[attempt.slot])
        ]

    def live(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.terminal]

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def one_attempt_a_slot(self) -> None:
        open_ = [attempt.slot for attempt in self.attempts.values() if attempt.state is not AttemptState.ENDED]
        assert len(open_) == len(set(open_)), f"two open attempts on a slot: {sorted(open_)}"

    @invariant()
    def only_the_newest_attempt_is_open(self) -> None:
        for (job_id, number), attempt in self.attempts.items():
            assert attempt.state is AttemptState.ENDED or number == self.jobs[job_id].attempt

    @invariant()
    def an_end_is_reached_once_and_never_left(self) -> None:
        for job_id, states in self.ends.items():
            assert states == [self.jobs[job_id].state]

    @invariant()
    def nothing_ended_holds_a_slot(self) -> None:
        assert not [job.id for job in self.jobs.values() if job.state.terminal and job.slot is not None]

    @invariant()
    def no_more_barren_attempts_than_allowed(self) -> None:
        assert all(job.barren <= POISON_AFTER for job in self.jobs.values())
        assert all(job.host_faults <= MAX_HOST_FAULTS for job in self.jobs.values())

    def teardown(self) -> None:
        """Left alone, everything comes to an end: no job is stuck, whatever happened before."""
        self.silent.clear()
        for _ in range(60):
            if all(job.state.terminal for job in self.jobs.values()):
                return
            self.time_passes(10_000)
            for job in list(self.jobs.values()):
                attempt = self.current(job)
                if job.state is JobState.PAUSED:
                    self.move(job, JobState.QUEUED)
                elif attempt is not None and attempt.state is AttemptState.ASSIGNED:
                    self.do_claim(job)
                elif attempt is None or attempt.worker_pid != self.pids[attempt.slot]:
                    continue  # nobody is left who could report it
                elif attempt.state is AttemptState.RUNNING:
                    self.end(job, Outcome(reason=Reason.SUCCEEDED))
        stuck = [f"{job.id} {job.state} {self.current(job)}" for job in self.jobs.values() if not job.state.terminal]
        assert not stuck, f"stuck: {stuck}"


Core.TestCase.settings = settings(
    max_examples=300, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCore = Core.TestCase
