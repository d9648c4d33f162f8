"""What becomes of a job whose attempt has ended: one pure function, a table of rules from top to bottom.

`gather` picks from the records all that the rules look at, `judge` applies them. What was gathered is recorded with the
decision, so that `replay` makes the same one again from the history alone. Neither sleeps nor touches Redis, and the
only chance in it (the jitter of the backoff) is one of the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Final

from trackside.line import FREE_SLOT
from trackside.models import Attempt, Job, JobState, Outcome, Program, Reason
from trackside.wording import counted

# The host's or the house's doing, not the job's: these use up no retry.
HOST_FAULTS: Final = frozenset({Reason.LOST, Reason.GPU_LOST, Reason.FENCED})
MAX_HOST_FAULTS: Final = 10  # in a row; a job that takes its hosts down would walk through all of them
# Losses that a job cannot have brought about: its worker left in order, or only the report of its end is missing.
_HARMLESS: Final = frozenset({"worker gone", "not carried"})
# Repeating these unchanged ends the same way.
FINAL: Final = {
    Reason.INVALID_JOB: "it cannot run as submitted",
    Reason.TIMEOUT: "its time limit is used up",
    Reason.DIVERGED: "its loss is no number any more",
    Reason.OOM_GPU: "the GPU's memory does not hold it; make the batch smaller and submit again",
}
MAX_ROLLBACKS: Final = 3  # in a row
# Python errors that no second try mends.
PERMANENT_ERRORS: Final = frozenset({"ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError"})
BACKOFF_OVER: Final = "backoff over"  # the rule by which a waiting job is queued again
# A slot's self-test is an attempt like any other, but its end is an answer: it is never tried again.
SELFTEST: Final = Program(kind="module", target="trackside.selftest")


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """The numbers of the retry rules."""

    poison_after: int
    backoff_s: Callable[[int], float]  # failures in a row -> seconds to wait, jitter included


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that the rules look at. A new fact needs a default, or old histories do not replay."""

    state: JobState
    reason: Reason
    attempt: int
    what: str = ""  # the outcome in words
    last_step: int | None = None
    progressed: bool = False  # the attempt brought the newest checkpoint
    error: str | None = None  # exception class
    repeats: bool = False  # the attempt before ended with the same exception at the same step
    reason_before: Reason | None = None  # why the attempt before ended
    selftest: bool = False
    failures: int = 0
    barren: int = 0
    retries: int = 0
    poison_after: int = 0
    wait_s: float = 0.0  # the backoff that was drawn for this decision
    attempt_limit: bool = False  # a timeout was that of one attempt, the job's own is not used up
    bad_step: int | None = None  # where the attempt began to diverge
    rollbacks: int = 0  # goings back in a row, with no newer checkpoint beyond where they began
    rollback_to: int = 0  # the step of the newest checkpoint that is older than the divergence; 0: none is
    struck: bool = False  # the end came from outside, and nobody of ours asked for it
    host_faults: int = 0  # such ends in a row, with no newer checkpoint
    host_faults_max: int = 0  # 0: older histories, which knew no limit

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Facts:
        """The facts in a recorded decision's inputs; what a later version added is passed over."""
        known = {each.name: inputs[each.name] for each in fields(cls) if inputs.get(each.name) is not None}
        before = known.get("reason_before")
        typed = {"state": JobState(known["state"]), "reason": Reason(known["reason"])}
        return cls(**{**known, **typed, "reason_before": Reason(before) if before else None})


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The state a job moves to, the rule that said so, and the inputs of that rule."""

    state: JobState
    rule: str
    detail: str
    retry_at_ms: int | None = None
    failures: int
    barren: int
    host_faults: int
    rollback_to: int | None = None  # forget the checkpoints after this step; 0: all of them
    inputs: dict[str, Any] = field(default_factory=dict)


def decide(job: Job, attempt: Attempt, previous: Attempt | None, policy: Policy, now_ms: int) -> Decision:
    """What becomes of `job` now that `attempt`, its newest, has ended; `previous` is the attempt before it."""
    return judge(gather(job, attempt, previous, policy), now_ms)


def replay(inputs: Mapping[str, Any], at_ms: int) -> Decision:
    """The decision that these recorded inputs led to at that time."""
    return judge(Facts.from_inputs(inputs), at_ms)


def gather(job: Job, attempt: Attempt, previous: Attempt | None, policy: Policy) -> Facts:
    """What the rules need to know, from the records."""
    outcome = attempt.outcome or Outcome(reason=Reason.LOST)
    before = previous.outcome if previous is not None else None
    progressed = bool(job.checkpoints) and job.checkpoints[0].attempt == attempt.number
    rollback_to = _rollback_to(job, attempt, outcome.bad_step)
    passed = job.bad_step is not None and rollback_to > job.bad_step
    struck = _struck(attempt, outcome)
    in_a_row = job.host_faults if struck else job.barren + 1  # the first host's fault is not waited for
    if progressed:  # memory that was short is waited for, or the next attempt runs into the same
        in_a_row = 1 if outcome.reason is Reason.OOM_HOST else 0
    return Facts(
        state=job.state,
        reason=outcome.reason,
        attempt=attempt.number,
        what=outcome.detail or outcome.reason.value,
        last_step=outcome.last_step,
        progressed=progressed,
        error=outcome.failure.type if outcome.failure else None,
        repeats=_repeats(outcome, before),
        reason_before=before.reason if before else None,
        selftest=job.spec.program == SELFTEST,
        failures=job.failures,
        barren=job.barren,
        retries=job.spec.retries,
        poison_after=policy.poison_after,
        wait_s=round(policy.backoff_s(in_a_row), 3),
        attempt_limit=_of_attempt(job),
        bad_step=outcome.bad_step,
        rollbacks=0 if passed else job.rollbacks,
        rollback_to=rollback_to,
        struck=struck,
        host_faults=job.host_faults,
        host_faults_max=MAX_HOST_FAULTS,
    )


def judge(facts: Facts, now_ms: int) -> Decision:
    """Apply the rules, the first that fits."""
    to = partial(_to, facts, now_ms)
    reason, what = facts.reason, facts.what
    if reason is Reason.SUCCEEDED:
        return to(JobState.SUCCEEDED, "succeeded", "done")
    if facts.state is JobState.CANCELLING or (reason is Reason.CANCELLED and facts.state is JobState.RUNNING):
        return to(JobState.CANCELLED, "cancelled", "cancelled while it ran")
    if facts.state is JobState.PAUSING:
        return to(JobState.PAUSED, "paused", "paused; `trackside resume` goes on from its newest checkpoint")
    if facts.selftest:
        return to(JobState.FAILED, "self-test failed", f"the slot is not fit for work: {what}")
    if facts.struck:
        return _struck_again(facts, now_ms)
    if reason in (Reason.PREEMPTED, Reason.PAUSED):
        return to(JobState.QUEUED, "preempted", f"made room at a step boundary; {FREE_SLOT}")
    if reason is Reason.DIVERGED and facts.bad_step is not None and facts.rollbacks < MAX_ROLLBACKS:
        where = f"to the checkpoint of step {facts.rollback_to}" if facts.rollback_to else "to the start"
        decision = to(JobState.QUEUED, "rolled back", f"goes back {where}: {what}")
        return replace(decision, rollback_to=facts.rollback_to)
    if reason is Reason.TIMEOUT and facts.attempt_limit:
        return _counted(facts, now_ms)
    if reason in FINAL:
        return to(JobState.FAILED, reason.value, f"{FINAL[reason]}: {what}")
    if reason in HOST_FAULTS:
        return to(JobState.QUEUED, "host fault", f"attempt {facts.attempt} ended {reason.value}: {what}")
    return _counted(facts, now_ms)


def _struck_again(facts: Facts, now_ms: int) -> Decision:
    """The rules for an end that came from outside: not the job's doing, until it goes on and on."""
    count = 0 if facts.progressed else facts.host_faults + 1
    to = partial(_to, facts, now_ms, host_faults=count)
    ended = f"attempt {facts.attempt} ended {facts.reason}: {facts.what}"
    if 0 < facts.host_faults_max <= count:
        row = f"{count} attempts in a row were lost with their host or stopped by a stranger, with no newer checkpoint"
        return to(JobState.FAILED, "takes its hosts along", f"{row}: {facts.what}")
    if count > 1:
        return to(JobState.WAITING, "host fault again", ended)
    return to(JobState.QUEUED, "host fault", ended)


def _counted(facts: Facts, now_ms: int) -> Decision:
    """The rules for an end that uses up a retry."""
    what, failures, barren = facts.what, facts.failures + 1, 0 if facts.progressed else facts.barren + 1
    to = partial(_to, facts, now_ms, failures=failures, barren=barren)
    if facts.error in PERMANENT_ERRORS:
        return to(JobState.FAILED, "permanent error", f"{what}; another try would end the same way")
    if facts.reason is facts.reason_before is Reason.OOM_HOST and not facts.progressed:
        return to(JobState.FAILED, "oom_host", f"twice in a row: {what}; use less memory and submit again")
    if facts.repeats and not facts.progressed:
        return to(
            JobState.FAILED, "repeated error", f"{what}; twice after step {facts.last_step or 0}, so it is not chance"
        )
    if barren >= facts.poison_after:
        row = f"{counted(barren, 'attempt')} in a row brought no newer checkpoint"
        return to(JobState.FAILED, "poison", f"{row}: {what}")
    if failures > facts.retries:
        used = f"{counted(failures, 'failure')}, {counted(facts.retries, 'retry')}"
        return to(JobState.FAILED, "budget used up", f"{used}: {what}")
    ended = f"attempt {facts.attempt} ended: {what}"
    if facts.progressed and facts.wait_s == 0:  # the run moves on, so nothing is gained by waiting
        return to(JobState.QUEUED, "retry at once", ended)
    return to(JobState.WAITING, "retry with backoff", ended)


def _to(
    facts: Facts, now_ms: int, state: JobState, rule: str, detail: str, *, failures: int | None = None,
    barren: int | None = None, host_faults: int | None = None,
) -> Decision:  # fmt: skip
    wait_s = facts.wait_s if state is JobState.WAITING else 0.0
    return Decision(
        state=state,
        rule=rule,
        detail=detail,
        retry_at_ms=now_ms + int(wait_s * 1000) if state is JobState.WAITING else None,
        failures=facts.failures if failures is None else failures,
        barren=facts.barren if barren is None else barren,
        host_faults=facts.host_faults if host_faults is None else host_faults,
        inputs={**asdict(facts), "wait_s": wait_s},
    )


def _rollback_to(job: Job, attempt: Attempt, bad_step: int | None) -> int:
    """The step to go back to: of the newest checkpoint before the first bad step, or of an older one.

    A checkpoint may hold the cause already: one that led to the first bad step at once does, and one that led there a
    second time may, since who logs rarely sees it late. Then an older one is tried, but only the former is given up
    where there is none older.
    """
    if bad_step is None:
        return 0
    newest, *older = sorted((c.step for c in job.checkpoints if c.step < bad_step), reverse=True) or [0]
    if newest == 0 or newest != attempt.resumed_step:
        return newest
    if newest == bad_step - 1:
        return older[0] if older else 0
    return older[0] if older and job.rollbacks else newest


def _struck(attempt: Attempt, outcome: Outcome) -> bool:
    """Whether the job may be behind an end from outside: it had begun, and no orderly stop of ours ended it."""
    if outcome.reason is Reason.PREEMPTED:
        return outcome.stranger
    return outcome.reason in HOST_FAULTS and attempt.started_at_ms is not None and outcome.rule not in _HARMLESS


def _of_attempt(job: Job) -> bool:
    spec = job.spec
    return spec.attempt_timeout_s is not None and (spec.timeout_s is None or job.ran_ms < spec.timeout_s * 1000)


def _repeats(outcome: Outcome, before: Outcome | None) -> bool:
    """Whether the attempt before ended with the same exception at the same step."""
    if before is None or outcome.failure is None or before.failure is None:
        return False
    same = (before.failure.type, before.failure.message) == (outcome.failure.type, outcome.failure.message)
    return same and outcome.failure.type is not None and before.last_step == outcome.last_step
