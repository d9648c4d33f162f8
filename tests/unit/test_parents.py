"""Jobs that wait for others, and who goes first."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Literal

import pytest

from makers import SLOT, a_job, an_event
from trackside.models import EventKind, Job, JobState
from trackside_supervisor.parents import RULE, verdict, waits
from trackside_supervisor.placement import place
from trackside_supervisor.replay import differs

LIVE = sorted(set(JobState) - {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})


def child(*parents: str) -> Job:
    return replace(a_job("child"), spec=replace(a_job().spec, after=parents))


def test_a_job_runs_once_all_its_parents_have_succeeded() -> None:
    assert verdict(child("a", "b"), {"a": JobState.SUCCEEDED, "b": JobState.SUCCEEDED}).answer == "ready"


@pytest.mark.parametrize("state", LIVE)
def test_it_waits_while_one_is_not_over(state: JobState) -> None:
    found = verdict(child("a", "b"), {"a": JobState.SUCCEEDED, "b": state})
    assert (found.answer, found.parent) == ("waits", "b")


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, None])
def test_it_fails_with_a_parent_that_did_not_succeed_whatever_the_others_do(state: JobState | None) -> None:
    found = verdict(child("a", "b"), {"a": JobState.RUNNING, "b": state})
    assert (found.answer, found.parent) == ("failed", "b")
    assert "run after b" in found.detail


def test_a_parent_that_was_cancelled_is_told_in_whole_words() -> None:
    found = verdict(child("b"), {"b": JobState.CANCELLED})
    assert found.detail == "it was to run after b, which was cancelled"
    data = {**found.inputs, "parent": found.parent}
    for words in (found.detail, "it was to run after b, which cancelled"):  # the latter as older histories have it
        event = an_event(
            EventKind.TRANSITION, 5, cause=RULE, old=JobState.QUEUED, new=JobState.FAILED,
            data={**data, "detail": words},
        )  # fmt: skip
        assert differs(event) is None


def test_parents_have_no_say_once_it_has_run() -> None:
    assert waits(child("a"))
    assert not waits(replace(child("a"), attempt=1))
    assert not waits(replace(child("a"), state=JobState.PAUSED))
    assert not waits(a_job())


def ranked(name: str, priority: Literal["high", "normal", "low"], at_ms: int) -> Job:
    return replace(a_job(name, at_ms), spec=replace(a_job().spec, priority=priority))


def test_priority_comes_before_age_whatever_the_order() -> None:
    jobs = [
        ranked("old-low", "low", 1),
        ranked("old", "normal", 2),
        ranked("new", "normal", 3),
        ranked("top", "high", 4),
    ]
    slots = [replace(SLOT, id=f"h-cpu{n}") for n in range(4)]
    for order in permutations(jobs):
        assert [job.id for job, _, _ in place(order, slots)] == ["top", "old", "new", "old-low"]
