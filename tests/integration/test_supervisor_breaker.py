"""A slot's breaker is moved by what it is when an end is decided: who moves it meanwhile is not undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from makers import SLOT, SPEC
from store_world import push_nothing
from supervisor_harness import everything, replay_all
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.models import Breaker, BreakerState, Job, Outcome, Reason
from trackside.store import Store
from trackside_supervisor.actions import Actions
from trackside_supervisor.recovery import decide

CRASHED = Breaker(slot=SLOT.id, failed=("a",))  # the next one opens it
PROBING = Breaker(slot=SLOT.id, state=BreakerState.PROBING, failed=("a", "c"), openings=1, probe="b")


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    """With a slot, for what the test itself does; it may do what the supervisor may."""
    found = Store(connect(bus_urls["supervisor"]), by="test")
    found.register_slot(SLOT)
    return found


@pytest.fixture
def supervisor(bus_urls: Mapping[str, str], tmp_path: Path) -> Actions:
    store = Store(connect(bus_urls["supervisor"]), by="supervisor:test")
    return Actions(store, Settings(home=tmp_path, breaker_after=2), bus_urls["supervisor"])


def crashed(store: Store, job_id: str) -> Job:
    """A job whose first attempt crashed on the slot."""
    store.submit(job_id, job_id, replace(SPEC, retries=3))
    store.assign(job_id, SLOT, push_nothing)
    store.claim(job_id, 1, worker_pid=10)
    return store.end_attempt(job_id, 1, Outcome(reason=Reason.KILLED))


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let `act` happen once, between a look at the records and the writing of what is decided from it."""
    left = [act]

    def later(*args: Any) -> Any:
        if left:
            left.pop()()
        return decide(*args)

    monkeypatch.setattr("trackside_supervisor.actions.decide", later)


@pytest.mark.parametrize("before", [CRASHED, PROBING], ids=lambda breaker: str(breaker.state))
def test_an_uncordon_stands_that_comes_while_an_end_is_decided(
    bus_urls: Mapping[str, str], store: Store, supervisor: Actions, monkeypatch: pytest.MonkeyPatch, before: Breaker
) -> None:
    person = Store(connect(bus_urls["submitter"]), by="cli:test")
    assert store.move_breaker(None, before, cause="test")
    job = crashed(store, "b")
    meanwhile(monkeypatch, lambda: person.cordon(SLOT.id, cordoned=False))
    supervisor.conclude(job, store.attempt("b", 1), None)
    anew = Breaker(slot=SLOT.id, failed=("b",))
    assert store.breakers([SLOT.id]) == {SLOT.id: anew}, "the uncordon was undone"
    assert supervisor.breakers == {SLOT.id: anew}
    assert [event.cause for event in everything(store) if event.cause in ("uncordoned", "breaker open")] == [
        "uncordoned"
    ]
    replay_all(everything(store))


def test_an_end_counts_on_top_of_what_moved_the_breaker_meanwhile(
    store: Store, supervisor: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = crashed(store, "b")
    meanwhile(monkeypatch, lambda: store.move_breaker(None, CRASHED, cause="test"))
    supervisor.conclude(job, store.attempt("b", 1), None)
    after = store.breakers([SLOT.id])[SLOT.id]
    assert (after.state, after.failed) == (BreakerState.OPEN, ("a", "b"))
    (told,) = [event for event in everything(store) if event.cause == "breaker open"]
    assert told.data["inputs"]["before"]["failed"] == ["a"]
    replay_all(everything(store))
