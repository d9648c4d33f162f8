"""The supervisor's pure core in a small world with a clock of its own: whatever happens, in whatever order.

The world (`supervisor_world.py`) holds records as the bus does and changes them as the store does; hypothesis chooses
what happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor_world import POISON_AFTER, TTL_MS, World
from trackside.models import ACTIVE, AttemptState, Failure, Job, JobState, Outcome, Reason
from trackside_supervisor.recovery import MAX_HOST_FAULTS, MAX_ROLLBACKS, SELFTEST

F = TypeVar("F", bound=Callable[..., Any])
CRASHES: Final = (
    Reason.KILLED, Reason.USER_ERROR, Reason.STALLED, Reason.CUDA_ERROR, Reason.OOM_HOST, Reason.GPU_LOST,
    Reason.PREEMPTED, Reason.FENCED, Reason.TIMEOUT,
)  # fmt: skip


def has(state: AttemptState) -> Callable[[F], F]:
    """A rule needs a job whose attempt is in this state."""
    return precondition(lambda self: bool(self.able(state)))


class Core(World, RuleBasedStateMachine):
    """What may happen to the world, and what holds of it whatever does."""

    @initialize(jitter=st.floats(0.0, 1.0))
    def begin(self, jitter: float) -> None:
        self.jitter = jitter

    @precondition(lambda self: len(self.submitted()) < 4)
    @rule(data=st.data(), retries=st.integers(0, 4), priority=st.sampled_from(["high", "normal", "low"]))
    def submit(self, data: st.DataObject, retries: int, priority: Any) -> None:
        there = self.submitted()
        after = data.draw(st.lists(st.sampled_from(there), unique=True, max_size=2)) if there else []
        self.put(f"job-{len(there)}", retries=retries, priority=priority, after=tuple(after))

    @rule(ms=st.sampled_from([10, 100, 1000, 3000]), claims=st.booleans())
    def time_passes(self, ms: int, claims: bool) -> None:
        self.pass_time(ms)
        for job in self.able(AttemptState.ASSIGNED) if claims else ():
            self.claim_of(job)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for slot in self.slots:
            if slot.id not in self.silent:
                self.deadlines[slot.id] = self.now_ms + TTL_MS
        self.tick()

    @rule(clear=st.booleans())
    def sight(self, clear: bool) -> None:
        """The supervisor loses sight of everybody, or has seen clearly for long enough again."""
        self.clear = clear

    @has(AttemptState.RUNNING)
    @rule(data=st.data(), steps=st.sampled_from([1, 10]))
    def save(self, data: st.DataObject, steps: int) -> None:
        """A newer checkpoint is accepted."""
        job = self.pick(data, AttemptState.RUNNING)
        self.steps[job.id] = self.steps.get(job.id, 0) + steps
        self.accept(job, self.steps[job.id])

    @has(AttemptState.RUNNING)
    @rule(data=st.data(), reason=st.sampled_from(CRASHES), step=st.integers(0, 2), stranger=st.booleans())
    def crash(self, data: st.DataObject, reason: Reason, step: int, stranger: bool) -> None:
        job = self.pick(data, AttemptState.RUNNING)
        failure = Failure(type="ValueError", message="x") if reason is Reason.USER_ERROR else None
        stranger = stranger and reason is Reason.PREEMPTED
        self.end(job, Outcome(reason=reason, failure=failure, last_step=step, stranger=stranger))

    @has(AttemptState.RUNNING)
    @rule(data=st.data(), clean=st.integers(2, 9), saved=st.sets(st.sampled_from([-1, 0, 1])))
    def diverge(self, data: st.DataObject, clean: int, saved: set[int]) -> None:
        """Its loss is no number from some step on, and it may have saved around it."""
        job = self.pick(data, AttemptState.RUNNING)
        bad_step = self.steps.get(job.id, 0) + clean
        for step in sorted(bad_step + offset for offset in saved):
            self.steps[job.id] = step
            self.accept(self.jobs[job.id], step)
        self.end(self.jobs[job.id], Outcome(reason=Reason.DIVERGED, bad_step=bad_step, last_step=bad_step + 2))

    @precondition(lambda self: bool(self.live()))
    @rule(
        data=st.data(), times=st.integers(1, 8),
        end=st.sampled_from([
            Outcome(reason=Reason.KILLED), Outcome(reason=Reason.GPU_LOST),
            Outcome(reason=Reason.PREEMPTED, stranger=True), Outcome(reason=Reason.DIVERGED, bad_step=10),
        ]),
    )  # fmt: skip
    def end_again_and_again(self, data: st.DataObject, times: int, end: Outcome) -> None:
        """A program that ends in this way whenever it is started, before it has saved anything."""
        job_id = data.draw(st.sampled_from(self.live())).id
        for _ in range(times * 3):
            job = self.jobs[job_id]
            attempt = self.current(job)
            if attempt is not None and attempt.state is AttemptState.ASSIGNED and attempt.slot not in self.silent:
                self.claim_of(job)
                self.end(self.jobs[job_id], end)
            self.pass_time(max(1000, (self.jobs[job_id].retry_at_ms or 0) - self.now_ms))

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
            self.paused.pop(job.id, None)
            self.move(job, JobState.CANCELLING if runs or job.state in ACTIVE else JobState.CANCELLED)
        elif wish == "pause" and not runs and job.state.may_become(JobState.PAUSED) and job.state not in ACTIVE:
            self.move(job, JobState.PAUSED)
        elif wish == "pause" and runs and job.state is JobState.RUNNING:
            self.move(job, JobState.PAUSING)
        elif wish == "resume" and job.state is JobState.PAUSED:
            self.resume(job)

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

    def submitted(self) -> list[str]:
        return [job.id for job in self.jobs.values() if job.spec.program != SELFTEST]

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
    def nothing_is_tried_for_ever(self) -> None:
        for job in self.jobs.values():
            assert job.barren <= POISON_AFTER
            assert job.host_faults <= MAX_HOST_FAULTS
            assert job.rollbacks <= MAX_ROLLBACKS

    @invariant()
    def a_paused_job_changes_by_a_wish_only(self) -> None:
        for job_id, as_it_was in self.paused.items():
            assert self.jobs[job_id] == as_it_was

    def teardown(self) -> None:
        """Left alone, everything comes to an end: no job is stuck, whatever happened before."""
        self.silent.clear()
        self.clear = True
        for _ in range(60):
            if not self.live():
                return
            self.pass_time(10_000)
            for job in self.live():
                attempt = self.current(job)
                if job.state is JobState.PAUSED:
                    self.resume(job)
                elif attempt is not None and attempt.state is AttemptState.ASSIGNED:
                    self.claim_of(job)
                elif attempt is None or attempt.worker_pid != self.pids[attempt.slot]:
                    continue  # nobody is left who could report it
                elif attempt.state is AttemptState.RUNNING:
                    self.end(job, Outcome(reason=Reason.SUCCEEDED))
        stuck = [f"{job.id} {job.state} {self.current(job)}" for job in self.live()]
        assert not stuck, f"stuck: {stuck}"


Core.TestCase.settings = settings(
    max_examples=200, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCore = Core.TestCase
