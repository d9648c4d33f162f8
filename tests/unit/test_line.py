"""A job's place in line is the one by which slots are given out; what comes next for it is told in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from makers import SPEC, a_job
from trackside import line
from trackside.models import Beat, Job, JobState, Reason, Role, Slot
from trackside.story import obstacles, what_is_next
from trackside_dashboard import queries
from trackside_supervisor.placement import free_slots, place


def queued(job_id: str, at_ms: int, *, priority: Any = "normal", after: tuple[str, ...] = (), **fields: Any) -> Job:
    return a_job(job_id, at_ms, name="n", spec=replace(SPEC, priority=priority, after=after), **fields)


JOBS = [
    queued("late", 3),
    queued("early", 1),
    queued("low", 0, priority="low"),
    queued("high", 9, priority="high"),
    queued("assigned", 0, slot="s-0", attempt=1),
    queued("held-up", 0, after=("early",), detail="waits for early"),
    queued("let-go", 2, after=("early",), detail=line.FREE_SLOT),
    replace(queued("running", 0), state=JobState.RUNNING),
]


def test_priority_then_age_and_nobody_who_waits_for_something_else() -> None:
    assert line.places(JOBS) == {"high": 1, "early": 2, "let-go": 3, "late": 4, "low": 5}


def test_slots_are_given_out_in_that_order() -> None:
    slots = [Slot(id=f"s-{number}", host="h", kind="cpu", storage="x") for number in range(9)]
    given = [placed.job.id for placed in place([job for job in JOBS if line.is_in_line(job)], slots)]
    assert given == list(line.places(JOBS))


@pytest.mark.parametrize(
    ("gpu", "disk", "why"),
    [(None, None, None), ("its GPU", None, "its GPU"), (None, "its disk", "its disk"), ("G", "d", "G; d")],
)
def test_what_keeps_a_slot_from_work_is_one_thing_for_whoever_gives_it_out_and_whoever_tells_of_it(
    gpu: str | None, disk: str | None, why: str | None
) -> None:
    slot = Slot(id="s", host="h", kind="gpu", storage="x", blocked=gpu)
    beat = Beat(role=Role.WORKER, name="s", host="h", pid=1, started_at_ms=0, at_ms=0, blocked=disk)
    leader = Beat(role=Role.SUPERVISOR, name="h-1", host="h", pid=1, started_at_ms=0, at_ms=0, leader=True)
    beats = {"worker:s": beat, "supervisor:h-1": leader}
    assert line.blocked_by(slot, beat) == why
    assert line.blocked_by(slot, None) == gpu
    assert free_slots([slot], [], beats) == ([] if why else [slot])
    told = f"s is blocked: {why}" if why else "s is free: the supervisor gives it out"
    assert obstacles(queued("a", 1), [slot], {}, beats, 0) == [told]
    assert queries.slot_state(slot, beat) == ("blocked" if why else "idle")
    assert queries.slot_why(slot, beat, None, 0) == why


def test_a_line_that_nobody_leads_says_so() -> None:
    leader = Beat(role=Role.SUPERVISOR, name="h-1", host="h", pid=1, started_at_ms=0, at_ms=0, leader=True)
    worker = Beat(role=Role.WORKER, name="s", host="h", pid=2, started_at_ms=0, at_ms=0)
    assert line.unled({"supervisor:h-1": leader, "worker:s": worker}) is None
    silent = line.unled({"supervisor:h-1": None, "worker:s": worker})
    assert silent == "no supervisor is heard: nothing is given out; see `trackside ps`"
    watching = line.unled({"supervisor:h-1": replace(leader, leader=False)})
    assert (watching or "").startswith("no supervisor leads")


def test_what_comes_next_names_the_place() -> None:
    assert what_is_next(queued("a", 1), None, 5, 3) == "next: waits for a free slot (3rd in line)"
    assert what_is_next(queued("a", 1), None, 5) == "next: waits for a free slot"


def test_a_job_given_up_as_hung_is_told_how_to_be_given_more_time() -> None:
    failed = replace(queued("a", 1), state=JobState.FAILED)
    assert "--stall-limit" in what_is_next(replace(failed, reason=Reason.STALLED), None, 5)
    assert "--stall-limit" not in what_is_next(replace(failed, reason=Reason.KILLED), None, 5)


@pytest.mark.parametrize(
    ("place_", "words"),
    [(1, "next"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (22, "22nd"), (113, "113th")],
)
def test_places_in_words(place_: int, words: str) -> None:
    assert line.words(place_) == f"{words} in line"
