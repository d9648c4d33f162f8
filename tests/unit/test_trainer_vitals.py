"""The speed that a worker's beat tells, whatever a step takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from trackside.sdk.page import ControlPage
from trackside_trainer.vitals import Vitals

BEAT_S = 1.0


@dataclass
class Run:
    """An attempt on a clock of its own, whose steps all take the same time."""

    page: ControlPage
    move_to: Callable[[float], None]

    def beats(self, step_s: float, until_s: float, *, stops_at_s: float = float("inf")) -> Iterator[float | int | None]:
        """The speed as each beat tells it; the loop begins at 0 s, and after `stops_at_s` no step ends."""
        vitals = Vitals()
        self.page.first = 1
        done, now_s = -1, 0.0
        while now_s <= until_s:
            while (done + 1) * step_s <= min(now_s, stops_at_s):
                done += 1
                self.move_to(done * step_s)
                self.page.boundary(done)
            self.move_to(now_s)
            yield vitals.look(self.page, running=False)["steps_per_s"]
            now_s += BEAT_S


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    at_s = 1000.0

    def move_to(now_s: float) -> None:
        nonlocal at_s
        at_s = 1000.0 + now_s

    monkeypatch.setattr(time, "monotonic", lambda: at_s)
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(at_s * 1e9))
    page = ControlPage.in_memory()
    yield Run(page=page, move_to=move_to)
    page.close()


@pytest.mark.parametrize("step_s", [0.1, 0.75, 2.0, 12.0, 30.0, 60.0, 600.0])
def test_each_beat_tells_the_true_speed_once_a_step_has_ended(run: Run, step_s: float) -> None:
    told = list(run.beats(step_s, step_s * 4 + 30))
    known = [speed for at, speed in enumerate(told) if at * BEAT_S >= step_s + BEAT_S]
    assert known
    assert all(speed == pytest.approx(1 / step_s, rel=0.01) for speed in known)
    assert all(speed is None for at, speed in enumerate(told) if at * BEAT_S < step_s)


def test_a_run_whose_steps_have_stopped_gets_slower_with_each_beat(run: Run) -> None:
    told = [speed for speed in run.beats(2.0, 120.0, stops_at_s=20.0) if speed is not None]
    assert told[15] == pytest.approx(0.5)
    later = told[30:]
    assert all(after < before for before, after in itertools.pairwise(later))
    assert later[-1] < 0.05
