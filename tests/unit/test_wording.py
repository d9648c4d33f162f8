"""The words that the command line and the dashboard share."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from makers import an_attempt
from trackside import wording
from trackside.models import AttemptState, Failure, JobSpec, Outcome, Program, Reason


@pytest.mark.parametrize(
    ("program", "typed"),
    [
        (Program(kind="script", target="train.py", argv=("--note", "two words")), "train.py --note 'two words'"),
        (Program(kind="module", target="pkg.train", argv=("-v",)), "-m pkg.train -v"),
        (Program(kind="function", target="pkg.train:main"), "pkg.train:main"),
    ],
    ids=lambda value: value.kind if isinstance(value, Program) else "",
)
def test_a_program_is_told_as_one_types_it(program: Program, typed: str) -> None:
    told = wording.program(JobSpec(program=program))
    assert told == typed
    assert shlex.split(told)[-len(program.argv) :] == [*program.argv] or not program.argv


def test_a_stall_limit_says_who_set_it() -> None:
    def told(limit_s: float | None) -> str:
        return wording.stall_limit(limit_s, lambda seconds: f"{seconds:g} s")

    assert told(None) == "learned from its own steps"
    assert told(90.0) == "90 s without a step"
    assert told(0.0) == "none: it is never taken for hung"


def test_an_end_tells_signal_or_exit_code_and_what_is_said_of_it() -> None:
    def told(outcome: Outcome | None) -> str:
        return wording.end(an_attempt(outcome=outcome))

    assert told(Outcome(reason=Reason.KILLED, signal="SIGKILL", detail="no memory")) == "SIGKILL: no memory"
    assert told(Outcome(reason=Reason.USER_ERROR, exit_code=3)) == "exit 3"
    assert told(Outcome(reason=Reason.SUCCEEDED, exit_code=0)) == ""
    assert told(None) == ""
    assert wording.error(Failure(type="ValueError", message="bad")) == "ValueError: bad"
    assert wording.error(Failure(message="the server took it back")) == "error: the server took it back"


@pytest.mark.parametrize(
    ("number", "noun", "told"),
    [(1, "retry", "1 retry"), (0, "retry", "0 retries"), (1, "fault", "1 fault"), (2, "fault", "2 faults")],
)
def test_a_number_has_its_noun_as_one_says_it(number: int, noun: str, told: str) -> None:
    assert wording.counted(number, noun) == told


def test_a_loop_that_was_left_early_is_told_of_a_success_alone() -> None:
    def told(reason: Reason, last_step: int | None, total: int | None) -> str:
        outcome = Outcome(reason=reason, detail="finished", last_step=last_step)
        return wording.end(an_attempt(total_steps=total, outcome=outcome))

    assert told(Reason.SUCCEEDED, 29, 60) == "finished; left its loop after 29 of 60 steps"
    for reason, last_step, total in (
        (Reason.SUCCEEDED, 60, 60),
        (Reason.SUCCEEDED, 29, None),
        (Reason.SUCCEEDED, None, 60),
        (Reason.KILLED, 29, 60),
    ):
        assert told(reason, last_step, total) == "finished"


def test_an_attempt_ran_as_long_as_its_process_whenever_that_was_reported() -> None:
    running = an_attempt(state=AttemptState.RUNNING, started_at_ms=2000)
    assert wording.ran_ms(an_attempt(), 9000) is None
    assert wording.ran_ms(running, 9000) == 7000
    ended = replace(running, state=AttemptState.ENDED, ended_at_ms=30_000, outcome=Outcome(reason=Reason.KILLED))
    assert wording.ran_ms(ended, 90_000) == 28_000, "nobody saw its process"
    assert wording.ran_ms(replace(ended, outcome=Outcome(reason=Reason.KILLED, ran_ms=4000)), 90_000) == 4000
