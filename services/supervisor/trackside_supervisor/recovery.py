"""What becomes of a job whose attempt has ended: one pure function, a table of rules from top to bottom.

It sees records and the time, and returns a decision with the numbers behind it. It neither sleeps nor touches Redis,
and the only chance in it (the jitter of the backoff) comes in as an argument, so a recorded decision replays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from trackside.models import Attempt, Job, JobState, Outcome, Reason

# The host's or the house's doing, not the job's: these use up no retry.
HOST_FAULTS: Final = frozenset({Reason.LOST, Reason.GPU_LOST, Reason.FENCED})
# Repeating these unchanged ends the same way.
FINAL: Final = {
    Reason.INVALID_JOB: "it cannot run as submitted",
    Reason.TIMEOUT: "its time limit is used up",
    Reason.DIVERGED: "its loss is no number any more",
    Reason.OOM_GPU: "the GPU's memory does not hold it; make the batch smaller and submit again",
}
# Python errors that no second try mends.
PERMANENT_ERRORS: Final = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The numbers of the retry rules."""

    poison_after: int
    backoff_s: Callable[[int], float]  # failures in a row -> seconds to wait, jitter included


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The state a job moves to, the rule that said so, and the inputs of that rule."""

    state: JobState
    rule: str
    detail: str
    retry_at_ms: int | None = None
    failures: int
    barren: int
    inputs: dict[str, Any] = field(default_factory=dict)


def decide(job: Job, attempt: Attempt, previous: Attempt | None, policy: Policy, now_ms: int) -> Decision:
    """What becomes of `job` now that `attempt`, its newest, has ended; `previous` is the attempt before it."""
    outcome = attempt.outcome or Outcome(reason=Reason.LOST)
    progressed = bool(job.checkpoints) and job.checkpoints[0].attempt == attempt.number
    inputs: dict[str, Any] = {
        "reason": outcome.reason.value,
        "attempt": attempt.number,
        "last_step": outcome.last_step,
        "progressed": progressed,
        "failures": job.failures,
        "barren": job.barren,
        "retries": job.spec.retries,
    }

    def to(
        state: JobState, rule: str, detail: str, *, wait_s: float = 0.0, failures: int | None = None,
        barren: int | None = None,
    ) -> Decision:  # fmt: skip
        return Decision(
            state=state, rule=rule, detail=detail,
            retry_at_ms=now_ms + int(wait_s * 1000) if state is JobState.WAITING else None,
            failures=job.failures if failures is None else failures,
            barren=job.barren if barren is None else barren,
            inputs={**inputs, "wait_s": round(wait_s, 3)},
        )  # fmt: skip

    reason, what = outcome.reason, outcome.detail or outcome.reason.value
    if reason is Reason.SUCCEEDED:
        return to(JobState.SUCCEEDED, "succeeded", "done")
    if job.state is JobState.CANCELLING or (reason is Reason.CANCELLED and job.state is JobState.RUNNING):
        return to(JobState.CANCELLED, "cancelled", "cancelled while it ran")
    if job.state is JobState.PAUSING:
        return to(JobState.PAUSED, "paused", "paused; `trackside resume` goes on from its newest checkpoint")
    if reason in (Reason.PREEMPTED, Reason.PAUSED):
        return to(JobState.QUEUED, "preempted", "made room at a step boundary; waits for a free slot")
    if reason in FINAL:
        return to(JobState.FAILED, reason.value, f"{FINAL[reason]}: {what}")
    if reason in HOST_FAULTS:
        return to(JobState.QUEUED, "host fault", f"attempt {attempt.number} ended {reason.value}: {what}")

    failures, barren = job.failures + 1, 0 if progressed else job.barren + 1
    counted = {"failures": failures, "barren": barren}
    error = outcome.failure.type if outcome.failure else None
    if error in PERMANENT_ERRORS:
        return to(JobState.FAILED, "permanent error", f"{what}; another try would end the same way", **counted)
    if not progressed and _repeats(outcome, previous):
        step = outcome.last_step or 0
        return to(JobState.FAILED, "repeated error", f"{what}; twice after step {step}, so it is not chance", **counted)
    if barren >= policy.poison_after:
        return to(
            JobState.FAILED, "poison", f"{barren} attempts in a row brought no newer checkpoint: {what}", **counted
        )
    if failures > job.spec.retries:
        return to(
            JobState.FAILED, "budget used up", f"{failures} failures, {job.spec.retries} retries: {what}", **counted
        )
    if progressed:  # the run moves on, so nothing is gained by waiting
        return to(JobState.QUEUED, "retry at once", f"attempt {attempt.number} ended: {what}", **counted)
    wait_s = policy.backoff_s(barren)
    return to(
        JobState.WAITING, "retry with backoff", f"attempt {attempt.number} ended: {what}", wait_s=wait_s, **counted
    )


def _repeats(outcome: Outcome, previous: Attempt | None) -> bool:
    """Whether the attempt before ended with the same exception at the same step."""
    before = previous.outcome if previous is not None else None
    if before is None or outcome.failure is None or before.failure is None:
        return False
    same = (before.failure.type, before.failure.message) == (outcome.failure.type, outcome.failure.message)
    return same and outcome.failure.type is not None and before.last_step == outcome.last_step
