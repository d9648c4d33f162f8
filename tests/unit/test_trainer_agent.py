"""When the agent starts a dead worker's successor."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from trackside.config import Settings
from trackside_trainer import agent as agent_module
from trackside_trainer import places
from trackside_trainer.agent import Agent
from trackside_trainer.places import Place
from worker_parts import SLOT, URL


def test_a_worker_that_keeps_dying_is_restarted_more_and_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longest(failures: int, *, first_s: float, max_s: float) -> float:
        return float(min(first_s * 2 ** (failures - 1), max_s))

    monkeypatch.setattr(places, "backoff_s", longest)
    monkeypatch.setattr(places, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    settings = Settings(home=tmp_path, restart_intensity=3, restart_period_s=60)
    place = Place(slot=SLOT)

    waits = [place.plan_restart(settings) for _ in range(12)]

    assert waits == [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert place.not_before_s == 1060.0


def test_deaths_long_ago_are_forgiven(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, restart_intensity=3, restart_period_s=60)
    place = Place(slot=SLOT, deaths_s=deque([time.monotonic() - 61] * 50))

    assert place.plan_restart(settings) == 0.0
    assert place.not_before_s <= time.monotonic()


def test_a_host_without_a_process_to_give_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(agent_module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    agent = Agent(Settings(home=tmp_path), [SLOT], URL, "box", "s1")
    agent._fork_missing()
    (place,) = agent._places.values()
    assert place.worker is None
    assert place.not_before_s == 1000.5
