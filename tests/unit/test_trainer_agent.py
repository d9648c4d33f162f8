"""The agent's decisions that need no process."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import pytest

from trackside.config import Settings
from trackside.models import Slot
from trackside_trainer import agent as agent_module
from trackside_trainer.agent import Agent, Place
from trackside_trainer.leftovers import Death

KILLED = Death.seen(9)
SLOT = Slot(id="box-cpu0", host="box", kind="cpu", storage="s1")


def test_a_worker_that_keeps_dying_is_restarted_more_and_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longest(failures: int, *, first_s: float, max_s: float) -> float:
        return float(min(first_s * 2 ** (failures - 1), max_s))

    monkeypatch.setattr(agent_module, "backoff_s", longest)
    settings = Settings(home=tmp_path, restart_intensity=3, restart_period_s=60)
    agent = Agent(settings, [SLOT], "redis://127.0.0.1:1", "box", "s1")
    place = Place(slot=SLOT, deaths=deque())

    waits = []
    for _ in range(12):
        before_s = time.monotonic()
        agent._plan_restart(place, KILLED)
        waits.append(round(place.not_before_s - before_s, 1))

    assert waits == [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_deaths_long_ago_are_forgiven(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, restart_intensity=3, restart_period_s=60)
    agent = Agent(settings, [SLOT], "redis://127.0.0.1:1", "box", "s1")
    place = Place(slot=SLOT, deaths=deque([time.monotonic() - 61] * 50))

    agent._plan_restart(place, KILLED)

    assert place.not_before_s <= time.monotonic()
