"""When a run counts as hung, and when its steps count as slow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from trackside.sdk.page import Phase
from trackside_trainer.progress import Limits, Progress, Seen, Slowdown, Stall

LIMITS = Limits(step_s=100.0, floor_s=10.0, startup_s=300.0, save_s=200.0, slow_s=5.0)
LOOK_S = 0.05


@dataclass
class Watched:
    """A run on a virtual clock, looked at 20 times a second."""

    progress: Progress
    seen: Seen

    def wait(self, seconds: float) -> list[Stall | Slowdown]:
        """Let time pass with nothing happening."""
        found = []
        end_s = self.seen.now_s + seconds
        while self.seen.now_s < end_s - 1e-9:
            self.seen = replace(self.seen, now_s=min(end_s, self.seen.now_s + LOOK_S))
            found.append(self.progress.look(self.seen))
        return [each for each in found if each is not None]

    def steps(self, count: int, step_s: float) -> list[Stall | Slowdown]:
        found = []
        for _ in range(count):
            found += self.wait(step_s)
            done = self.seen.completed + 1
            self.seen = replace(self.seen, completed=done, boundary_ns=int(self.seen.now_s * 1e9))
            found += self.show()
        return found

    def show(self, **fields: object) -> list[Stall | Slowdown]:
        self.seen = replace(self.seen, **fields)  # type: ignore[arg-type]  # the caller names real fields
        found = self.progress.look(self.seen)
        return [] if found is None else [found]


@pytest.fixture
def run() -> Watched:
    """A run in its step loop, with its first step ahead."""
    seen = Seen(now_s=1000.0, completed=0, first=1, phase=Phase.STEPPING, boundary_ns=1000 * 10**9, opened_ns=1)
    watched = Watched(Progress(LIMITS), seen)
    watched.show()
    return watched


def stalls(found: list[Stall | Slowdown]) -> list[Stall]:
    return [each for each in found if isinstance(each, Stall)]


def test_a_fast_run_is_judged_by_the_floor(run: Watched) -> None:
    assert run.steps(30, 0.1) == []
    assert run.wait(9.9) == []
    (first, *_) = stalls(run.wait(0.2))
    assert str(first) == "no step for 10.0 s (limit 10 s, learned from its median step of 0.1 s)"


def test_a_slow_run_is_given_twenty_times_its_median(run: Watched) -> None:
    assert run.steps(10, 2.0) == []
    assert run.wait(39.9) == []
    assert stalls(run.wait(0.2))[0].limit_s == pytest.approx(40.0, rel=0.01)


def test_nothing_learned_goes_beyond_the_setting(run: Watched) -> None:
    assert run.steps(10, 20.0) == []
    assert run.wait(99.9) == []
    (first, *_) = stalls(run.wait(0.2))
    assert (first.limit_s, first.median_s) == (100.0, None)


def test_a_long_step_that_was_survived_widens_the_limit(run: Watched) -> None:
    run.steps(20, 0.1)
    assert run.steps(1, 9.0) == []  # an evaluation every so many steps
    assert run.wait(26.0) == []
    assert stalls(run.wait(2.0))


def test_before_the_first_step_the_limit_for_starting_counts(run: Watched) -> None:
    assert run.wait(299.0) == []
    assert stalls(run.wait(2.0))[0].clock == "first step"


def test_a_program_that_never_used_the_sdk_is_not_judged(run: Watched) -> None:
    assert run.show(first=None, opened_ns=None, phase=Phase.STARTING) == []
    assert run.wait(2000.0) == []


def test_one_that_did_is_judged_from_its_last_sign_of_life(run: Watched) -> None:
    run.show(first=None, phase=Phase.STARTING)
    assert run.wait(290.0) == []
    run.show(opened_ns=2)
    assert run.wait(290.0) == []
    assert stalls(run.wait(20.0))


def test_after_the_loop_nothing_is_judged(run: Watched) -> None:
    run.steps(20, 0.1)
    run.show(phase=Phase.STARTING)
    assert run.wait(1000.0) == []


def test_a_checkpoint_has_a_limit_of_its_own(run: Watched) -> None:
    run.steps(20, 0.1)
    run.show(phase=Phase.SAVING)
    assert run.wait(199.0) == []
    assert stalls(run.wait(2.0))[0].clock == "end of its checkpoint"


def test_the_step_after_a_long_checkpoint_starts_a_new_count(run: Watched) -> None:
    run.steps(20, 0.1)
    run.show(phase=Phase.SAVING)
    run.wait(60.0)
    run.show(phase=Phase.STEPPING)
    assert run.wait(9.9) == []


def test_a_pause_of_the_watcher_is_not_held_against_the_run(run: Watched) -> None:
    run.steps(20, 0.1)
    run.seen = replace(run.seen, now_s=run.seen.now_s + 3600.0)  # both were stopped
    assert run.show() == []
    assert run.wait(7.0) == []
    assert stalls(run.wait(1.0))  # a quarter of the limit was counted


def test_a_step_ends_a_stall(run: Watched) -> None:
    run.steps(20, 0.1)
    assert stalls(run.wait(11.0))
    run.steps(1, 0.1)
    assert run.show() == []
    assert run.wait(5.0) == []


def test_lasting_slowness_is_told_once_and_again_after_it_had_passed(run: Watched) -> None:
    run.steps(50, 0.5)
    assert run.steps(9, 2.0) == []
    (told,) = run.steps(30, 2.0)
    assert isinstance(told, Slowdown)
    assert told.step_s == pytest.approx(2.0, rel=0.01)
    assert told.median_s == pytest.approx(0.5, rel=0.01)
    assert run.steps(100, 0.5) == []
    assert len(run.steps(30, 2.0)) == 1


def test_ten_slow_steps_that_are_over_at_once_are_no_news(run: Watched) -> None:
    run.steps(100, 0.1)
    assert run.steps(12, 0.35) == []  # 4.2 s


def test_single_slow_steps_are_no_slowdown(run: Watched) -> None:
    run.steps(20, 0.5)
    for _ in range(30):
        assert run.steps(1, 8.0) + run.steps(1, 0.5) == []
