"""A decision's event leads to the same decision again, whatever it was about, and to another where it was forged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from makers import SPEC, a_checkpoint, a_job, an_attempt
from trackside.codec import decode, encode
from trackside.models import (
    AttemptState,
    Beat,
    Breaker,
    BreakerState,
    CheckpointRef,
    Event,
    EventKind,
    Job,
    JobState,
    Reason,
    Role,
    Slot,
)
from trackside_supervisor import breaker, older, parents, placement, rebuild, standstill, watch
from trackside_supervisor.replay import differs, replay

NOW: Final = 1_000_000
SLOT: Final = Slot(id="s", host="h", kind="cpu", storage="d")
BY: Final = "supervisor:h-1"
LIMITS: Final = breaker.Limits(after=2, rest_s=lambda _: 1.5)


def queued(name: str, at_ms: int = 0, checkpoints: tuple[CheckpointRef, ...] = (), **spec: Any) -> Job:
    return a_job(name, at_ms, checkpoints=checkpoints, spec=replace(SPEC, **spec))


def given_out(jobs: list[Job], slots: list[Slot], breakers: dict[str, Breaker] | None = None) -> list[Event]:
    return [
        Event(
            kind=EventKind.ASSIGNED, at_ms=NOW, job=job.id, attempt=1, cause="slot free", by=BY,
            data={"slot": slot.id, "host": slot.host, "inputs": inputs},
        )
        for job, slot, inputs in placement.place(jobs, slots, breakers)
    ]  # fmt: skip


def loss(now_ms: int = NOW, deadline_ms: int | None = NOW - 9000, beat: Beat | None = None, **of: Any) -> Event:
    attempt = an_attempt(slot="s", state=AttemptState.RUNNING, worker_pid=10)
    deadlines = {} if deadline_ms is None else {"worker:s": deadline_ms}
    sight = watch.Sight(now_ms=now_ms, deadlines=deadlines, beats={"worker:s": beat}, clear=True)
    found = watch.lost(queued("j"), replace(attempt, **of), sight, watch.Limits(margin_ms=1000, claim_ms=5000))
    assert found is not None
    late = found.outcome.noticed_after_ms
    data = {"slot": "s", "detail": found.outcome.detail, "rule": found.rule, "inputs": found.inputs}
    return Event(
        kind=EventKind.ENDED, at_ms=NOW, job="j", attempt=1, cause="lost", by=BY,
        data=data if late is None else {**data, "noticed_after_ms": late},
    )  # fmt: skip


def slot_moved(before: Breaker, after: Breaker, cause: str, inputs: dict[str, Any]) -> Event:
    facts = {"openings": after.openings, "until_ms": after.until_ms}
    known = {name: value for name, value in facts.items() if value is not None}
    return Event(
        kind=EventKind.SLOT, at_ms=NOW, cause=cause, by=BY, data={"slot": before.slot, **known, "inputs": inputs}
    )


def opened() -> Event:
    before = Breaker(slot="s", failed=("a",))
    after = breaker.observe(before, "b", Reason.KILLED, LIMITS, NOW)
    happened = {"job": "b", "reason": "killed", "progressed": False}
    return slot_moved(before, after, "breaker open", breaker.inputs(before, LIMITS, NOW, **happened))


def probing() -> Event:
    before = Breaker(slot="s", state=BreakerState.OPEN, failed=("a", "b"), openings=1, until_ms=NOW)
    after = breaker.probing(before, breaker.probe_id(before))
    return slot_moved(before, after, breaker.RESTED, breaker.inputs(before, None, NOW))


def went_away() -> Event:
    before = Breaker(slot="s", state=BreakerState.PROBING, failed=("a", "b"), openings=1, probe="selftest-s-1")
    after = breaker.unanswered(before, LIMITS, NOW)
    return slot_moved(before, after, breaker.WENT_AWAY, breaker.inputs(before, LIMITS, NOW))


def of_parents(states: dict[str, JobState | None]) -> Event:
    verdict = parents.verdict(queued("child", after=tuple(states)), states)
    if verdict.answer == "ready":
        return Event(kind=EventKind.NOTE, at_ms=NOW, job="child", cause=parents.SUCCEEDED, by=BY, data=verdict.inputs)
    return Event(
        kind=EventKind.TRANSITION, at_ms=NOW, job="child", cause=parents.RULE, old=JobState.QUEUED,
        new=JobState.FAILED, by=BY, data={"parent": verdict.parent, "detail": verdict.detail, **verdict.inputs},
    )  # fmt: skip


def noted(cause: str, inputs: dict[str, Any], **data: Any) -> Event:
    return Event(kind=EventKind.NOTE, at_ms=NOW, job="j", cause=cause, by=BY, data={**data, "inputs": inputs})


def left_alone(**facts: Any) -> Event:
    known = standstill.Facts(**facts)
    inputs = {name: value for name, value in asdict(known).items() if value is not None}
    return noted(standstill.OLDER, inputs, **standstill.told(known))


def came_back_older(**facts: Any) -> Event:
    look = older.Look(
        **{"seen": "5-0", "still_there": True, "first": "1-0", "events": 9, "known": {}, "there": {}, **facts}
    )
    assert older.judge(look) is older.Verdict.OLDER
    return noted(rebuild.BEGUN, look.inputs())


def rebuilt(**facts: Any) -> Event:
    gap = older.Gap(**facts)
    return noted(rebuild.REBUILT, asdict(gap), there=gap.theirs, lost_events=gap.lost_events)


MANY: Final = {f"j{number}": 2 for number in range(30)}


def a_beat(pid: int, job: str | None) -> Beat:
    return Beat(role=Role.WORKER, name="s", host="h", pid=pid, started_at_ms=0, at_ms=0, slot="s", job=job)


DECISIONS: dict[str, Callable[[], Event]] = {
    "a placement": lambda: given_out([queued("late", 2), queued("early", 1)], [SLOT])[0],
    "a silent host": loss,
    "a worker that left": lambda: loss(deadline_ms=None),
    "one that nobody claimed": lambda: loss(
        deadline_ms=NOW + 1, beat=a_beat(10, None), state=AttemptState.ASSIGNED, worker_pid=None
    ),
    "a worker that was replaced": lambda: loss(deadline_ms=NOW + 1, beat=a_beat(11, None)),
    "a breaker that opens": opened,
    "a self-test": probing,
    "a self-test that went away": went_away,
    "parents that succeeded": lambda: of_parents({"a": JobState.SUCCEEDED, "b": JobState.SUCCEEDED}),
    "a parent that failed": lambda: of_parents({"a": JobState.RUNNING, "b": JobState.FAILED}),
    "a parent that is gone": lambda: of_parents({"a": None}),
    "a worker that carries more than the server knows": lambda: left_alone(there=1, carried=2),
    "a folder of more than the server knows": lambda: left_alone(there=0, carried=None, on_disk=3),
    "events that are gone": lambda: came_back_older(still_there=False),
    "attempts that are gone": lambda: came_back_older(known=MANY, there={**MANY, "j7": 1, "j9": None}),
    "a server without anything": lambda: came_back_older(known=MANY, there=dict.fromkeys(MANY), first=None, events=0),
    "a job that is gone": lambda: rebuilt(ours=2, lost_events=9),
    "an attempt that is gone": lambda: rebuilt(ours=2, theirs=1, lost_events=4),
    "history that is gone": lambda: rebuilt(ours=2, theirs=2, lost_events=1),
    "a backoff that is over": lambda: Event(
        kind=EventKind.TRANSITION, at_ms=NOW, job="j", cause="backoff over", old=JobState.WAITING,
        new=JobState.QUEUED, by=BY, data={"retry_at_ms": NOW},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIONS)
def test_a_decision_is_made_again_from_its_event_as_it_lies_on_the_bus(name: str) -> None:
    event = decode(Event, encode(DECISIONS[name]()))
    assert replay(event) is not None
    assert differs(event) is None


FORGED: dict[str, tuple[str, dict[str, Any]]] = {
    "a placement": ("a placement", {"slot": "other"}),
    "a silent host": ("a silent host", {"noticed_after_ms": 1}),
    "the wrong rule": ("a worker that left", {"rule": "silent host"}),
    "a breaker that opens": ("a breaker that opens", {"until_ms": NOW}),
    "a self-test": ("a self-test", {"openings": 7}),
    "a parent that failed": ("a parent that failed", {"parent": "a"}),
    "a backoff that is over": ("a backoff that is over", {"retry_at_ms": NOW + 1}),
    "a server that knows enough": (
        "a worker that carries more than the server knows",
        {"inputs": {"there": 2, "carried": 2}},
    ),
    "another attempt": ("a folder of more than the server knows", {"given": 4}),
    "a server that has all": (
        "events that are gone",
        {"inputs": {"seen": "5-0", "still_there": True, "events": 9, "known": {}, "there": {}}},
    ),
    "a job that lacks nothing": ("a job that is gone", {"inputs": {"ours": 2, "theirs": 2}}),
    "a job that was led on": (
        "history that is gone",
        {"inputs": {"ours": 2, "theirs": 2, "lost_events": 1, "led_on": True}},
    ),
    "parents that succeeded": ("parents that succeeded", {"parents": {"a": "running"}}),
}


def test_a_verdict_names_few_jobs_and_is_reached_by_them_again() -> None:
    event = came_back_older(known=MANY, there=dict.fromkeys(MANY))
    assert len(event.data["inputs"]["known"]) == 10
    assert differs(event) is None


@pytest.mark.parametrize("name", FORGED)
def test_a_decision_that_its_inputs_do_not_lead_to_is_told(name: str) -> None:
    of, changes = FORGED[name]
    event = DECISIONS[of]()
    assert differs(replace(event, data={**event.data, **changes})) is not None


def test_a_supervisors_decision_without_inputs_is_told_and_others_events_are_not() -> None:
    bare = Event(kind=EventKind.ASSIGNED, at_ms=NOW, job="j", attempt=1, cause="slot free", by=BY, data={"slot": "s"})
    assert "no inputs" in (differs(bare) or "")
    assert differs(replace(bare, by="worker:h-cpu0")) is None
    assert differs(replace(bare, kind=EventKind.NOTE)) is None
    assert "no inputs" in (differs(replace(bare, kind=EventKind.NOTE, cause=parents.SUCCEEDED)) or "")


@pytest.mark.parametrize("cause", [standstill.OLDER, rebuild.BEGUN, rebuild.REBUILT])
def test_a_note_that_an_earlier_version_wrote_without_its_inputs_is_no_finding(cause: str) -> None:
    assert differs(Event(kind=EventKind.NOTE, at_ms=NOW, job="j", cause=cause, by=BY, data={"there": 1})) is None


slots = st.lists(
    st.builds(
        Slot, id=st.from_regex(r"s[0-9]{1,2}", fullmatch=True), host=st.just("h"), kind=st.sampled_from(["cpu", "gpu"]),
        storage=st.sampled_from(["d", "e"]),
    ),
    unique_by=lambda slot: slot.id, max_size=8,
)  # fmt: skip
jobs = st.lists(
    st.builds(
        lambda name, at_ms, device, priority, slot, storage: queued(
            name, at_ms, () if storage is None else (a_checkpoint(1, storage=storage),),
            device=device, priority=priority, slot=slot,
        ),
        st.from_regex(r"j[0-9]{1,2}", fullmatch=True), st.integers(0, 3), st.sampled_from(["any", "cpu", "gpu"]),
        st.sampled_from(["high", "normal", "low"]), st.sampled_from([None, None, "s1"]),
        st.sampled_from([None, "d", "e"]),
    ),
    unique_by=lambda job: job.id, max_size=10,
)  # fmt: skip


@given(jobs=jobs, free=slots, rests=st.sets(st.integers(0, 7)))
def test_every_placement_is_made_again(jobs: list[Job], free: list[Slot], rests: set[int]) -> None:
    open_ = {slot.id: Breaker(slot=slot.id, state=BreakerState.OPEN) for at, slot in enumerate(free) if at in rests}
    for event in given_out(jobs, free, open_):
        assert differs(decode(Event, encode(event))) is None
        assert event.data["slot"] not in open_
