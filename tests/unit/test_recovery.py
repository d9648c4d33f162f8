"""The retry rules: every ending leads to one legal next state, and nothing is retried for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makers import a_checkpoint, a_job, an_attempt
from trackside.models import (
    ACTIVE,
    Attempt,
    AttemptState,
    Failure,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
)
from trackside.retry import backoff_s
from trackside.story import RULES
from trackside_supervisor.recovery import MAX_HOST_FAULTS, SELFTEST, Decision, Policy, decide, replay

POLICY = Policy(poison_after=3, backoff_s=lambda failures: 2.0 * failures)
NOW = 1_000_000


def running(state: JobState = JobState.RUNNING, attempt: int = 1, **fields: Any) -> Job:
    return a_job(state=state, attempt=attempt, **fields)


def ended(reason: Reason, number: int = 1, **facts: object) -> Attempt:
    outcome = Outcome(reason=reason, **facts)  # type: ignore[arg-type]  # the caller names real fields
    return an_attempt(number, state=AttemptState.ENDED, started_at_ms=1, outcome=outcome)


@pytest.mark.parametrize(
    ("state", "reason", "becomes"),
    [
        (JobState.RUNNING, Reason.SUCCEEDED, JobState.SUCCEEDED),
        (JobState.RUNNING, Reason.KILLED, JobState.WAITING),
        (JobState.RUNNING, Reason.USER_ERROR, JobState.WAITING),
        (JobState.RUNNING, Reason.LOST, JobState.QUEUED),
        (JobState.RUNNING, Reason.PREEMPTED, JobState.QUEUED),
        (JobState.RUNNING, Reason.OOM_GPU, JobState.FAILED),
        (JobState.RUNNING, Reason.INVALID_JOB, JobState.FAILED),
        (JobState.RUNNING, Reason.TIMEOUT, JobState.FAILED),
        (JobState.PAUSING, Reason.PAUSED, JobState.PAUSED),
        (JobState.PAUSING, Reason.KILLED, JobState.PAUSED),
        (JobState.PAUSING, Reason.SUCCEEDED, JobState.SUCCEEDED),
        (JobState.CANCELLING, Reason.CANCELLED, JobState.CANCELLED),
        (JobState.CANCELLING, Reason.KILLED, JobState.CANCELLED),
        (JobState.CANCELLING, Reason.LOST, JobState.CANCELLED),
        (JobState.CANCELLING, Reason.SUCCEEDED, JobState.SUCCEEDED),
    ],
)
def test_each_ending_has_its_consequence(state: JobState, reason: Reason, becomes: JobState) -> None:
    assert decide(running(state), ended(reason), None, POLICY, NOW).state is becomes


@given(
    state=st.sampled_from(sorted(ACTIVE)),
    reason=st.sampled_from(Reason),
    failures=st.integers(0, 9),
    barren=st.integers(0, 9),
    host_faults=st.integers(0, 12),
    stranger=st.booleans(),
    checkpoint=st.none() | st.integers(1, 3),
    error=st.none() | st.sampled_from(["ValueError", "ImportError"]),
)
def test_every_decision_is_a_legal_move_with_its_inputs(
    state: JobState,
    reason: Reason,
    failures: int,
    barren: int,
    host_faults: int,
    stranger: bool,
    checkpoint: int | None,
    error: str | None,
) -> None:
    checkpoints = () if checkpoint is None else (a_checkpoint(10, checkpoint),)
    job = running(state, attempt=2, failures=failures, barren=barren, host_faults=host_faults, checkpoints=checkpoints)
    failure = None if error is None else Failure(type=error, message="m")
    attempt = ended(reason, 2, failure=failure, stranger=stranger)
    decision = decide(job, attempt, ended(Reason.KILLED), POLICY, NOW)
    assert state.may_become(decision.state)
    assert decision.inputs["reason"] == reason.value
    assert decision.rule in RULES
    assert replay(orjson.loads(orjson.dumps(decision.inputs)), NOW) == decision
    assert (decision.retry_at_ms is not None) == (decision.state is JobState.WAITING)


def lived_through(reasons: list[Reason], progress: bool) -> tuple[Job, int]:
    """A job that ends each attempt with the next reason; returns it and the number of attempts made."""
    job = running(JobState.RUNNING, attempt=1)
    for number, reason in enumerate(reasons, 1):
        if progress:
            job = replace(job, checkpoints=(a_checkpoint(number * 10, number),), failures=0, barren=0)
        attempt = ended(reason, number, last_step=number, failure=Failure(type="E", message=str(number)))
        decision = decide(replace(job, attempt=number), attempt, None, POLICY, NOW)
        job = replace(job, state=decision.state, failures=decision.failures, barren=decision.barren)
        if job.state.terminal:
            return job, number
        job = replace(job, state=JobState.RUNNING)
    return job, len(reasons)


def test_three_crashes_with_nothing_saved_are_poison() -> None:
    job, attempts = lived_through([Reason.KILLED] * 10, progress=False)
    assert (job.state, attempts) == (JobState.FAILED, 3)


def test_crashes_that_each_bring_a_newer_checkpoint_are_never_too_many() -> None:
    job, attempts = lived_through([Reason.KILLED] * 50, progress=True)
    assert (job.state, attempts) == (JobState.RUNNING, 50)


# What ends an attempt from outside, though the job may be behind it.
OUTSIDE: dict[str, dict[str, Any]] = {
    "a silent host": {"reason": Reason.LOST, "rule": "silent host"},
    "a worker that was replaced": {"reason": Reason.LOST, "rule": "worker replaced"},
    "a lost GPU": {"reason": Reason.GPU_LOST},
    "a fence": {"reason": Reason.FENCED},
    "a stranger's SIGTERM": {"reason": Reason.PREEMPTED, "stranger": True},
}
# What a stop of our own, a server or a trainer that does not begin brings.
ORDERLY: dict[str, dict[str, Any]] = {
    "an orderly stop": {"reason": Reason.PREEMPTED},
    "an orderly stop that nobody could report": {"reason": Reason.LOST, "rule": "worker gone"},
    "a report that the server lost": {"reason": Reason.LOST, "rule": "not carried"},
    "an attempt that never began": {"reason": Reason.LOST, "rule": "silent host", "started_at_ms": None},
}


def ended_again_and_again(*, progress: bool, times: int, **end: Any) -> tuple[Job, list[Decision]]:
    """A job whose attempts all end in this way, until it is over; returns it and what was decided."""
    started_at_ms = end.pop("started_at_ms", 1)
    job, made = running(), list[Decision]()
    for number in range(1, times + 1):
        job = replace(job, state=JobState.RUNNING, attempt=number)
        if progress:
            job = replace(job, checkpoints=(a_checkpoint(number * 10, number),), failures=0, barren=0, host_faults=0)
        attempt = replace(ended(number=number, **end), started_at_ms=started_at_ms)
        made.append(decide(job, attempt, None, POLICY, NOW))
        assert replay(orjson.loads(orjson.dumps(made[-1].inputs)), NOW) == made[-1]
        job = replace(
            job, state=made[-1].state, failures=made[-1].failures, barren=made[-1].barren,
            host_faults=made[-1].host_faults,
        )  # fmt: skip
        if job.state.terminal:
            break
    return job, made


@pytest.mark.parametrize("what", OUTSIDE)
def test_ends_from_outside_use_up_no_retry_and_do_not_go_on_for_ever(what: str) -> None:
    job, made = ended_again_and_again(progress=False, times=20, **OUTSIDE[what])
    assert (job.state, job.failures, job.barren) == (JobState.FAILED, 0, 0)
    assert [decision.rule for decision in made] == [
        "host fault", *["host fault again"] * (MAX_HOST_FAULTS - 2), "takes its hosts along",
    ]  # fmt: skip
    assert [decision.retry_at_ms for decision in made] == [
        None, *[NOW + 2000 * count for count in range(1, MAX_HOST_FAULTS - 1)], None,
    ]  # fmt: skip
    assert "10 attempts in a row" in made[-1].detail


@pytest.mark.parametrize("what", OUTSIDE)
def test_hosts_that_go_away_are_never_too_many_for_a_job_that_saves(what: str) -> None:
    job, made = ended_again_and_again(progress=True, times=50, **OUTSIDE[what])
    assert (job.state, job.host_faults, len(made)) == (JobState.QUEUED, 0, 50)
    assert {decision.state for decision in made} == {JobState.QUEUED}, "a run that moves on was kept waiting"


@pytest.mark.parametrize("what", ORDERLY)
def test_what_the_job_cannot_have_brought_about_is_neither_counted_nor_waited_for(what: str) -> None:
    job, made = ended_again_and_again(progress=False, times=50, **ORDERLY[what])
    assert (job.state, job.host_faults, job.failures, len(made)) == (JobState.QUEUED, 0, 0, 50)
    assert {decision.state for decision in made} == {JobState.QUEUED}


def test_crashes_in_between_do_not_hide_that_a_job_takes_its_hosts_along() -> None:
    job = running(host_faults=MAX_HOST_FAULTS - 1)
    crashed = decide(job, ended(Reason.KILLED), None, POLICY, NOW)
    assert (crashed.host_faults, crashed.barren) == (MAX_HOST_FAULTS - 1, 1)
    lost = decide(replace(job, barren=1), ended(Reason.LOST, rule="silent host"), None, POLICY, NOW)
    assert (lost.state, lost.rule) == (JobState.FAILED, "takes its hosts along")


def test_a_decision_from_before_there_was_a_limit_is_made_again_as_it_was() -> None:
    inputs = {"state": "running", "reason": "lost", "attempt": 40, "what": "silent", "poison_after": 3, "retries": 4}
    decision = replay(inputs, NOW)
    assert (decision.state, decision.rule) == (JobState.QUEUED, "host fault")


def test_a_crash_after_progress_is_retried_at_once_and_one_without_waits() -> None:
    progressed = decide(running(checkpoints=(a_checkpoint(10, 1),)), ended(Reason.KILLED), None, POLICY, NOW)
    assert (progressed.state, progressed.retry_at_ms) == (JobState.QUEUED, None)
    barren = decide(running(), ended(Reason.KILLED), None, POLICY, NOW)
    assert (barren.state, barren.retry_at_ms) == (JobState.WAITING, NOW + 2000)


def test_the_same_exception_at_the_same_step_twice_is_no_chance() -> None:
    failure = Failure(type="ValueError", message="bad row 7")
    first = ended(Reason.USER_ERROR, 1, last_step=7, failure=failure)
    again = ended(Reason.USER_ERROR, 2, last_step=7, failure=failure)
    decision = decide(running(attempt=2, failures=1, barren=1), again, first, POLICY, NOW)
    assert (decision.state, decision.rule) == (JobState.FAILED, "repeated error")
    elsewhere = replace(again, outcome=Outcome(reason=Reason.USER_ERROR, last_step=9, failure=failure))
    assert decide(running(attempt=2, barren=1), elsewhere, first, POLICY, NOW).state is JobState.WAITING


def test_a_missing_module_fails_at_once_and_says_so() -> None:
    failure = Failure(type="ModuleNotFoundError", message="No module named 'timm'")
    outcome = ended(Reason.USER_ERROR, 1, failure=failure, detail="ModuleNotFoundError: No module named 'timm'")
    decision = decide(running(), outcome, None, POLICY, NOW)
    assert decision.state is JobState.FAILED
    assert "timm" in decision.detail


def test_retries_beyond_the_budget_fail_and_say_the_numbers() -> None:
    job = running(failures=4, checkpoints=(a_checkpoint(10, 1),))
    decision = decide(job, ended(Reason.KILLED), None, POLICY, NOW)
    assert decision.state is JobState.FAILED
    assert "4 retries" in decision.detail


def test_a_full_host_is_tried_once_more_after_a_wait_and_not_a_third_time() -> None:
    first = ended(Reason.OOM_HOST, 1, last_step=5)
    decision = decide(running(), first, None, POLICY, NOW)
    assert (decision.state, decision.rule) == (JobState.WAITING, "retry with backoff")
    again = decide(running(attempt=2, barren=1), ended(Reason.OOM_HOST, 2), first, POLICY, NOW)
    assert (again.state, again.rule) == (JobState.FAILED, "oom_host")
    moving = running(attempt=2, checkpoints=(a_checkpoint(10, 2),))
    short = decide(moving, ended(Reason.OOM_HOST, 2), first, POLICY, NOW)
    assert (short.state, short.rule) == (JobState.WAITING, "retry with backoff"), "at once it runs into the same"


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.SUCCEEDED, Reason.CANCELLED}))
def test_a_self_test_is_never_tried_again(reason: Reason) -> None:
    job = running()
    job = replace(job, spec=replace(job.spec, program=SELFTEST))
    assert decide(job, ended(reason), None, POLICY, NOW).state is JobState.FAILED


def test_what_is_inherited_from_another_job_is_no_progress() -> None:
    inherited = replace(a_checkpoint(10, 0), job="old")
    assert decide(running(checkpoints=(inherited,)), ended(Reason.KILLED), None, POLICY, NOW).state is JobState.WAITING


@given(st.integers(1, 40))
def test_the_backoff_stays_in_its_envelope(failures: int) -> None:
    assert 0.0 <= backoff_s(failures, first_s=2.0, max_s=300.0) <= min(300.0, 2.0 * 2 ** (failures - 1))


def diverged(bad_step: int | None = 45, number: int = 1, resumed_step: int | None = None) -> Attempt:
    return replace(ended(Reason.DIVERGED, number, bad_step=bad_step), resumed_step=resumed_step)


def test_a_diverged_run_goes_back_to_the_newest_checkpoint_before_its_first_bad_step() -> None:
    job = running(checkpoints=(a_checkpoint(50, 1), a_checkpoint(45, 1), a_checkpoint(40, 1), a_checkpoint(30, 1)))
    decision = decide(job, diverged(), None, POLICY, NOW)
    assert (decision.state, decision.rule, decision.rollback_to) == (JobState.QUEUED, "rolled back", 40)
    assert decision.inputs["rollbacks"] == 0
    assert replay(decision.inputs, NOW) == decision


def test_a_checkpoint_that_leads_there_at_once_is_left_behind_too() -> None:
    job = running(checkpoints=(a_checkpoint(44, 1), a_checkpoint(40, 1)))
    assert decide(job, diverged(), None, POLICY, NOW).rollback_to == 44
    assert decide(job, diverged(resumed_step=44), None, POLICY, NOW).rollback_to == 40


def test_one_that_leads_there_a_second_time_is_left_behind_if_there_is_an_older_one() -> None:
    job = running(checkpoints=(a_checkpoint(40, 1), a_checkpoint(30, 1)), rollbacks=1, bad_step=45)
    assert decide(job, diverged(resumed_step=40), None, POLICY, NOW).rollback_to == 30
    only = replace(job, checkpoints=(a_checkpoint(40, 1),))
    assert decide(only, diverged(resumed_step=40), None, POLICY, NOW).rollback_to == 40


def test_without_an_older_checkpoint_it_starts_over() -> None:
    decision = decide(running(checkpoints=(a_checkpoint(50, 1),)), diverged(), None, POLICY, NOW)
    assert (decision.state, decision.rollback_to) == (JobState.QUEUED, 0)


def test_three_times_in_a_row_and_then_it_has_failed() -> None:
    job = running(checkpoints=(a_checkpoint(40, 1),), rollbacks=3, bad_step=45)
    decision = decide(job, diverged(number=4), None, POLICY, NOW)
    assert (decision.state, decision.rule, decision.rollback_to) == (JobState.FAILED, "diverged", None)


def test_a_checkpoint_beyond_the_last_divergence_starts_the_count_anew() -> None:
    job = running(checkpoints=(a_checkpoint(60, 4), a_checkpoint(40, 1)), rollbacks=3, bad_step=45)
    decision = decide(job, diverged(bad_step=70, number=4), None, POLICY, NOW)
    assert (decision.rule, decision.rollback_to, decision.inputs["rollbacks"]) == ("rolled back", 60, 0)
    # One that was saved on the way there is none beyond it.
    job = running(checkpoints=(a_checkpoint(44, 4), a_checkpoint(40, 1)), rollbacks=3, bad_step=45)
    assert decide(job, diverged(number=4), None, POLICY, NOW).state is JobState.FAILED


def test_the_limit_of_one_attempt_is_a_failure_that_is_retried_and_the_jobs_is_not() -> None:
    spec = JobSpec(program=Program(kind="script", target="train.py"), attempt_timeout_s=5.0, timeout_s=60.0)
    attempt = ended(Reason.TIMEOUT)
    within = running(spec=spec, ran_ms=5_000, checkpoints=(a_checkpoint(40, 1),))
    assert decide(within, attempt, None, POLICY, NOW).rule == "retry at once"
    assert decide(replace(within, checkpoints=()), attempt, None, POLICY, NOW).rule == "retry with backoff"
    assert decide(replace(within, ran_ms=60_000), attempt, None, POLICY, NOW).state is JobState.FAILED
