"""Whether a run still steps, and at its own pace: pure, over what the control page shows.

Silence counts only while it is watched: after a pause of the watcher itself (a stopped worker, a suspended laptop) it
goes on from where it was, since the run may have stood still for the same reason.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

from trackside.sdk.page import Phase

LEARNED_TIMES: Final = 30.0  # median steps without one; an evaluation of 20 within a step passes, with a margin
LONGEST_TIMES: Final = 3.0  # an evaluation within a step comes again, and may take longer
_LEARN_FROM: Final = 5  # samples before the floor holds
_SLOW_TIMES: Final = 3.0
_SLOW_STEPS: Final = 10
_SAMPLES: Final = 512
SAVING_CLOCK: Final = "end of its checkpoint"
_BLIND_SHARE: Final = 4.0  # of a limit: what one gap between two looks may count at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How long each kind of silence may last at least, in seconds; infinity: for ever."""

    step_s: float  # while little is known of the run's own pace
    floor_s: float  # once it is known
    startup_s: float
    save_s: float
    slow_s: float  # how long steps must have been slow before it is told
    learns: bool = True  # slow steps widen the limits; False: these hold as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One look at a page. `opened_ns` is when the program last showed that it uses the SDK, None if it never did."""

    now_s: float
    completed: int
    first: int | None
    phase: Phase
    boundary_ns: int | None
    opened_ns: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stall:
    """A limit that was passed: `clock` says which."""

    clock: str
    quiet_s: float
    limit_s: float
    median_s: float | None

    def __str__(self) -> str:
        learned = f", learned from its median step of {self.median_s:.3g} s" if self.median_s is not None else ""
        return f"no {self.clock} for {self.quiet_s:.1f} s (limit {self.limit_s:.3g} s{learned})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowdown:
    """Steps that have become slow, in seconds a step."""

    step_s: float
    median_s: float

    def __str__(self) -> str:
        return (
            f"steps have become slow: {self.step_s:.3g} s each where this run's median is {self.median_s:.3g} s; "
            "look at the host's load and the GPU's clocks"
        )


class Pace:
    """The run's own step times: a bounded, evenly thinned sample of all of them."""

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._stride = self._skipped = 1
        self._median_s: float | None = None
        self.longest_s = 0.0

    def add(self, step_s: float) -> None:
        self.longest_s = max(self.longest_s, step_s)
        if self._skipped < self._stride:
            self._skipped += 1
            return
        self._skipped = 1
        self._samples.append(step_s)
        self._median_s = None
        if len(self._samples) >= _SAMPLES:
            self._samples = self._samples[::2]
            self._stride *= 2

    @property
    def known(self) -> bool:
        """Whether there were enough steps to judge others by."""
        return len(self._samples) >= _LEARN_FROM

    @property
    def median_s(self) -> float | None:
        """The median step; None before the first."""
        if self._median_s is None and self._samples:
            self._median_s = statistics.median(self._samples)
        return self._median_s


class Progress:
    """Takes looks in, and says when a limit is passed or the steps have become slow."""

    def __init__(self, limits: Limits) -> None:
        self.pace = Pace()
        self._limits = limits
        self._last: Seen | None = None
        self._quiet_s = 0.0
        self._slow_steps = self._fast_steps = 0
        self._slow_for_s = 0.0
        self._slow_told = False

    def look(self, seen: Seen) -> Stall | Slowdown | None:
        """What this look shows; a stall is shown again at each look until a step is done."""
        last, self._last = self._last, seen
        if last is None:
            return None
        passed_s = min(seen.now_s - last.now_s, self._clock(last)[1] / _BLIND_SHARE)
        slowdown = self._take_steps(last, seen, self._quiet_s + passed_s)
        clock, limit_s, median_s = self._clock(seen)
        moved = (seen.completed, seen.first, seen.phase, seen.opened_ns) != (
            last.completed, last.first, last.phase, last.opened_ns,
        )  # fmt: skip
        if not moved:
            self._quiet_s += passed_s
        else:
            since_s = (
                seen.now_s - seen.boundary_ns / 1e9 if seen.boundary_ns and seen.completed != last.completed else 0
            )
            self._quiet_s = min(max(0.0, since_s), passed_s)
        if clock is not None and self._quiet_s > limit_s:
            return Stall(clock=clock, quiet_s=self._quiet_s, limit_s=limit_s, median_s=median_s)
        return slowdown

    def _clock(self, seen: Seen) -> tuple[str | None, float, float | None]:
        """Which clock runs now, its limit, and the median behind that if it was learned; None: nothing to judge by."""
        limits = self._limits
        if seen.phase is Phase.SAVING:
            return SAVING_CLOCK, *self._at_least(limits.save_s)
        if seen.phase is Phase.ENDED or (seen.first is None and seen.opened_ns is None):
            return None, limits.startup_s, None
        if seen.first is None or (seen.phase is Phase.STEPPING and seen.completed < seen.first):
            return "first step", limits.startup_s, None
        if seen.phase is not Phase.STEPPING:  # after the loop: a test or an export has no steps
            return None, limits.step_s, None
        if limits.learns and self.pace.median_s is None:  # compilers often start again at the second step
            return "step", max(limits.step_s, limits.startup_s), None
        return "step", *self._at_least(limits.floor_s if self.pace.known else limits.step_s)

    def _at_least(self, least_s: float) -> tuple[float, float | None]:
        """That limit, or a longer one that the run's own steps ask for, and the median if it had a say."""
        median_s = self.pace.median_s
        if not self._limits.learns or median_s is None:
            return least_s, None
        own_s = max(LEARNED_TIMES * median_s, LONGEST_TIMES * self.pace.longest_s)
        return max(least_s, own_s), median_s if own_s > least_s or self.pace.known else None

    def _take_steps(self, last: Seen, seen: Seen, watched_s: float) -> Slowdown | None:
        steps = seen.completed - last.completed
        if steps <= 0 or last.boundary_ns is None or seen.boundary_ns is None or last.first is None:
            return None
        if last.completed < last.first:  # the first step compiles and warms up
            return None
        # A run that was stopped together with its watcher was not slow, nor may it be so the next time.
        step_s = min((seen.boundary_ns - last.boundary_ns) / 1e9 / steps, watched_s)
        median_s = self.pace.median_s if self.pace.known else None
        self.pace.add(step_s)
        if median_s is None:
            return None
        if step_s <= _SLOW_TIMES * median_s:
            self._slow_steps, self._slow_for_s = 0, 0.0
            self._fast_steps += steps
            if self._fast_steps >= _SLOW_STEPS:
                self._slow_told = False
            return None
        self._fast_steps = 0
        self._slow_steps += steps
        self._slow_for_s += step_s * steps
        if self._slow_told or self._slow_steps < _SLOW_STEPS or self._slow_for_s < self._limits.slow_s:
            return None
        self._slow_told = True
        return Slowdown(step_s=self._slow_for_s / self._slow_steps, median_s=median_s)
