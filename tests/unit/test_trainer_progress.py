"""When a run counts as hung, and when its steps count as slow."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from makers import SPEC, a_job
from trackside.config import Settings
from trackside.models import Job, JobState, Reason
from trackside.sdk.page import Phase
from trackside_trainer.progress import Limits, Progress, Seen, Slowdown, Stall
from trackside_trainer.watchdog import limits_for

DAY_S: Final = 24 * 3600.0
START_S: Final = 1000.0
DEFAULTS: Final = limits_for(Settings(home=Path("/nowhere")))
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


def test_a_slow_run_is_given_thirty_times_its_median(run: Watched) -> None:
    assert run.steps(10, 2.0) == []
    assert run.wait(59.9) == []
    assert stalls(run.wait(0.2))[0].limit_s == pytest.approx(60.0, rel=0.01)


def test_slow_steps_are_given_more_than_the_setting(run: Watched) -> None:
    assert run.steps(10, 20.0) == []
    assert run.wait(599.9) == []
    (first, *_) = stalls(run.wait(0.2))
    assert first.limit_s == pytest.approx(600.0)
    assert first.median_s == pytest.approx(20.0)


def test_what_few_steps_show_can_only_lengthen_the_setting(run: Watched) -> None:
    assert run.steps(4, 0.1) == []
    assert run.wait(99.9) == []
    (first, *_) = stalls(run.wait(0.2))
    assert (first.limit_s, first.median_s) == (100.0, None)


def test_the_second_step_may_take_as_long_as_the_first(run: Watched) -> None:
    assert run.steps(1, 250.0) == []  # it compiles
    assert run.wait(299.9) == []  # and again, for another shape
    assert stalls(run.wait(0.2))[0].limit_s == 300.0


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


def test_a_checkpoint_of_a_slow_run_may_take_as_long_as_thirty_of_its_steps(run: Watched) -> None:
    run.steps(10, 20.0)
    run.show(phase=Phase.SAVING)
    assert run.wait(599.9) == []
    assert stalls(run.wait(0.2))[0].clock == "end of its checkpoint"


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


@pytest.mark.parametrize("steps", [2, 20])
def test_a_step_that_was_paused_with_its_watcher_widens_no_limit(run: Watched, steps: int) -> None:
    run.steps(steps, 0.1)
    run.seen = replace(run.seen, now_s=run.seen.now_s + 36_000.0)  # a night in a paused container
    assert run.steps(1, 0.1) == []
    assert run.steps(20, 0.1) == []
    assert run.wait(9.9) == []
    bound_s = 10.1 if steps == 20 else 76.0  # by a quarter of the limit at that time, three times
    assert stalls(run.wait(bound_s - 9.9))


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


def changes(step_s: float, pause: float, save: float, source: random.Random) -> Iterator[tuple[float, dict[str, Any]]]:
    """When a run's page changes, and to what. Steps vary by a third.

    In some of them an evaluation takes `pause` steps' time, and after some a checkpoint `save` steps' time.
    """
    at_s = START_S
    for step in itertools.count(1):
        at_s += step_s * source.uniform(0.7, 1.3) + (pause * step_s if step % 50 == 20 else 0)
        saves = step % 70 == 0
        yield (
            at_s,
            {"completed": step, "boundary_ns": int(at_s * 1e9), "phase": Phase.SAVING if saves else Phase.STEPPING},
        )
        if saves:
            at_s += save * step_s
            yield at_s, {"phase": Phase.STEPPING}


def day(watched: Watched, step_s: float, *, pause: float = 0.0, save: float = 0.0) -> list[Stall]:
    """Twenty-four hours of such a run, looked at once a second; when it was taken for hung."""
    coming = changes(step_s, pause, save, random.Random(f"{step_s} {pause}"))
    at_s, change = next(coming)
    found = []
    for second in range(int(DAY_S)):
        now_s = START_S + second
        fields: dict[str, Any] = {}
        while at_s <= now_s:
            fields |= change
            at_s, change = next(coming)
        watched.seen = replace(watched.seen, now_s=now_s, **fields)
        found.append(watched.progress.look(watched.seen))
    assert watched.seen.completed > DAY_S / step_s / 3, "the day was spent on something else"
    watched.show(phase=Phase.STEPPING)
    return [each for each in found if isinstance(each, Stall)]


def fresh(limits: Limits = DEFAULTS) -> Watched:
    seen = Seen(now_s=START_S, completed=0, first=1, phase=Phase.STEPPING, boundary_ns=int(START_S * 1e9), opened_ns=1)
    return Watched(Progress(limits), seen)


# The bounds stand in docs/operations.md.
@pytest.mark.parametrize(
    ("step_s", "even_min", "uneven_min"), [(0.1, 2, 2), (2.0, 2, 2.2), (10.0, 5.2, 11), (60.0, 31, 65)]
)
def test_a_day_with_pauses_and_saves_of_twenty_steps_is_no_hang_and_a_hang_is_found_in_bounds(
    step_s: float, even_min: float, uneven_min: float
) -> None:
    uneven = fresh()
    assert day(uneven, step_s, pause=20, save=20) == []
    even = fresh()
    assert day(even, step_s) == []
    for watched, bound_min in ((even, even_min), (uneven, uneven_min)):
        hung = stalls(watched.wait(60 * bound_min + 1))
        assert hung, f"not found within {bound_min} min"
        assert hung[0].quiet_s > 20 * step_s


@pytest.mark.parametrize("step_s", [0.1, 2.0, 10.0, 60.0])
def test_a_hang_within_a_save_is_found_in_bounds(step_s: float) -> None:
    watched = fresh()
    watched.steps(10, step_s)
    watched.show(phase=Phase.SAVING)
    assert stalls(watched.wait(1800 + 60))[0].clock == "end of its checkpoint"


def test_steps_of_a_quarter_of_an_hour_are_no_hang() -> None:
    assert day(fresh(), 900.0) == []


def stalled(barren: int = 0, stall_limit_s: float | None = None, reason: Reason | None = Reason.STALLED) -> Job:
    spec = replace(SPEC, stall_limit_s=stall_limit_s)
    return a_job(state=JobState.RUNNING, spec=spec, barren=barren, reason=reason)


def test_an_evaluation_of_twelve_minutes_is_let_through_before_the_job_is_given_up() -> None:
    settings = Settings(home=Path("/nowhere"))
    passed = []
    for barren in range(settings.poison_after):
        watched = fresh(limits_for(settings, stalled(barren, reason=Reason.STALLED if barren else None)))
        watched.steps(10, 2.0)
        passed.append(not stalls(watched.wait(720)))
    assert passed[0] is False, "else this test shows nothing"
    assert passed[-1] is True


def test_the_submitters_own_limit_counts_as_it_is() -> None:
    watched = fresh(limits_for(Settings(home=Path("/nowhere")), stalled(5, stall_limit_s=30.0)))
    watched.steps(10, 8.0)
    assert watched.wait(29.9) == []
    (first, *_) = stalls(watched.wait(0.2))
    assert (first.limit_s, first.median_s) == (30.0, None)


def test_a_long_limit_of_the_submitters_covers_the_start_and_saves_too() -> None:
    watched = fresh(limits_for(Settings(home=Path("/nowhere")), stalled(stall_limit_s=2700.0)))
    assert watched.wait(2699) == []
    watched.steps(10, 0.1)
    watched.show(phase=Phase.SAVING)
    assert watched.wait(2699) == []
    assert stalls(watched.wait(2))


def test_a_submitter_who_wants_no_limit_has_none() -> None:
    watched = fresh(limits_for(Settings(home=Path("/nowhere")), stalled(stall_limit_s=0.0)))
    assert watched.wait(2000) == []
    watched.steps(20, 0.1)
    assert watched.wait(2000) == []
    watched.show(phase=Phase.SAVING)
    assert watched.wait(2000) == []
