"""One fault, done to a run of one's own script, and judged: the undisturbed run, the harm, the oracle's verdict."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from trackside import oracle, witness
from trackside.cli import distress
from trackside.cli.faults import Fault, Harm, Need, Scene
from trackside.cli.onlooker import Onlooker, calm, due, facts, onlooker
from trackside.cli.services import entry
from trackside.cli.throwaway import Throwaway, TooLate
from trackside.errors import ServerError, TracksideError
from trackside.models import Beat, EventKind, Job, JobState, Role
from trackside.oracle import Cost, Expected, JobHistory, Rules, Value, Violation
from trackside.processes import look
from trackside.testing import wait_until
from trackside.wording import counted

_HEAL_LIMIT_S: Final = 60.0
_RUN_FACTOR: Final = 4.0  # times the undisturbed run, and a minute, until a disturbed one must have ended
_SAVES_MIN: Final = 3  # so that after a fault in the first half one is due, and another follows
_HANG_FLOOR_S: Final = 3.0  # a busy machine halts a healthy process for a second
_HANG_STEPS: Final = 20.0
_HANG_SILENCES: Final = 3.0
_TWO: Final = 2
_TRIES: Final = 3  # to harm a run before its end: whoever looks on may be halted for as long as a short script runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What undisturbed runs of the script gave, and all of them alike."""

    series: dict[str, dict[int, Value]]
    summary: dict[str, Any]
    differing: tuple[str, ...]  # names that differ between two undisturbed runs, so nothing can be said about them
    interval: int | None  # steps between accepted checkpoints at most, the one before the first included
    last_step: int
    seconds: float
    job: Job  # one of the runs
    hang_s: float  # no step for so long is a hang of this script
    step_s: float | None = None  # a step's time on average
    checkpoint_bytes: int = 0  # the largest file of its newest checkpoint
    own_bytes: int = 0  # the largest file that it writes otherwise
    saves: int = 0

    def lacks(self, need: Need, slots: int) -> str | None:
        """Why the script, on so many slots, cannot show what a fault needs; None: it can."""
        match need:
            case Need.STEPS if self.last_step == 0:
                return "it counts no steps"
            case Need.CHECKPOINTS if self.saves < _SAVES_MIN:
                saved = f"{counted(self.saves, 'checkpoint')}, {_SAVES_MIN} are needed"
                return saved if self.saves else "it saves no checkpoint"
            case Need.LARGE_CHECKPOINTS if distress.room_bytes(self.checkpoint_bytes) <= self.own_bytes:
                return "its checkpoints are not the largest files that it writes"
            case Need.SLOTS if slots < _TWO:
                return "it needs two slots"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What became of one fault."""

    fault: Fault
    job: str
    attempts: int = 0
    reasons: tuple[str, ...] = ()
    cost: Cost | None = None
    violations: tuple[Violation, ...] = ()
    judged: tuple[str, ...] = ()  # the oracle's rules that had something to judge
    error: str | None = None  # why it could not be judged
    not_applicable: str | None = None  # why it cannot be shown on this script; nothing was done
    too_late: bool = False  # the error is that the run was over before it could be harmed
    counted: bool = True  # whether the script counts steps, so that it is known how many were lost or done again
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        """Whether nothing speaks against it."""
        return self.error is None and not self.violations


def baseline(system: Throwaway, submit: Callable[[], str], limit_s: float = 300.0) -> Baseline:
    """Run the script twice without any harm, at the same time; raises ServerError if that alone does not work."""
    deadline_s = time.monotonic() + limit_s
    job_ids = [submit(), submit()]
    for job_id in job_ids:
        try:
            job = system.ended(job_id, max(0.0, deadline_s - time.monotonic()))
        except AssertionError as error:
            said = f"the undisturbed runs did not end within {limit_s:g} s: give fewer steps, or a longer --limit"
            raise ServerError(said) from error
        if job.state is not JobState.SUCCEEDED or job.attempt != 1:
            raise ServerError(
                f"the undisturbed run ended {job.state} after {counted(job.attempt, 'attempt')} ({job.detail}): mend "
                "the script first; its output is in the drill's home, under jobs"
            )
    history = witness.read(system.store, job_ids, home=system.home, rules=rules(system))
    violations = oracle.check(history)
    if violations:
        raise ServerError(f"the undisturbed run breaks a promise already ({violations[0]}): look into the drill's home")
    one, other = history.jobs
    differing: list[str] = []
    return Baseline(
        series=_alike(oracle.canonical(one), oracle.canonical(other), differing),
        summary=_alike(oracle.summary(one), oracle.summary(other), differing),
        differing=tuple(differing),
        interval=_interval(one),
        last_step=_last_step(one),
        seconds=max(_seconds(each) for each in history.jobs),
        job=one.job,
        hang_s=max(hang_s(each) for each in history.jobs),
        step_s=oracle.step_s(one),
        checkpoint_bytes=distress.newest_checkpoint_bytes(system.home, one.job.id),
        own_bytes=distress.own_bytes(system.home, one.job.id, one.attempts[0].started_at_ms or 0),
        saves=sum(event.kind is EventKind.CHECKPOINT for event in one.events),
    )


def rehearse(system: Throwaway, fault: Fault, submit: Callable[[], str], base: Baseline, rng: random.Random) -> Result:
    """Submit the script, harm it at a chance moment, let it end, and judge; again where it was over before that."""
    began_s = time.monotonic()
    for _ in range(_TRIES):
        result = _rehearse_once(system, fault, submit, base, rng)
        if not result.too_late:
            break
    return replace(result, seconds=round(time.monotonic() - began_s, 2))


def _rehearse_once(
    system: Throwaway, fault: Fault, submit: Callable[[], str], base: Baseline, rng: random.Random
) -> Result:
    job_id = ""
    try:
        healed(system)
        lacking = [why for need in fault.needs if (why := base.lacks(need, len(system.ask(system.store.slots))))]
        if lacking:
            return Result(fault=fault, job="", not_applicable=min(lacking))
        job_id = system.again(base.job, stall_limit_s=round(base.hang_s, 3)) if fault.hangs else submit()
        spare = base.lacks(Need.SLOTS, len(system.ask(system.store.slots))) is None
        patience_s = 60.0 + _RUN_FACTOR * base.seconds + base.hang_s
        with onlooker(system, job_id, bystander=fault.bystander and spare) as seen:
            await_moment(system, job_id, base, rng)
            with ExitStack() as stack:
                harm = fault.inject(Scene(system=system, job=job_id, rng=rng, stack=stack, patience_s=patience_s))
                for each in (job_id, *seen.beside):
                    system.ended(each, patience_s)
        return judge(system, fault, job_id, harm, base, seen)
    except (TracksideError, AssertionError, LookupError, OSError) as error:
        give_up(system, job_id)
        said = f"{type(error).__name__}: {error}"
        return Result(fault=fault, job=job_id, error=said, too_late=isinstance(error, TooLate))


def hang_s(each: JobHistory) -> float:
    """How long this script may go without a step before it hangs, by its own pace in an undisturbed run.

    Twenty of its slowest logged steps, three of its longest silences, and a floor. A script that logs rarely shows a
    longer silence than it has, so its limit is long and never too short.
    """
    points = sorted(
        (step, at_ms / 1000)
        for entry in each.entries
        if entry.batch is not None
        for step, at_ms in zip(entry.batch.steps, entry.batch.at_ms, strict=False)
    )
    gaps = [(to - since, step - before) for (before, since), (step, to) in itertools.pairwise(points) if step > before]
    if not gaps:
        gaps = [(_seconds(each), max(1, _last_step(each)))]
    slowest_s = max(gap_s / steps for gap_s, steps in gaps)
    return max(_HANG_FLOOR_S, _HANG_STEPS * slowest_s, _HANG_SILENCES * max(gap_s for gap_s, _ in gaps))


def await_moment(system: Throwaway, job_id: str, base: Baseline, rng: random.Random) -> None:
    """Wait for a chance step between a quarter and a half of the way, or for a time where nothing counts steps."""
    share = rng.uniform(0.25, 0.5)
    if base.last_step > 0:
        system.stepping(job_id, int(share * base.last_step))
    else:
        wait_until(lambda: system.worker_of(job_id), 60.0, f"{job_id} was not taken by a worker")
        time.sleep(share * base.seconds)
    time.sleep(rng.uniform(0.0, 0.1))


def judge(
    system: Throwaway, fault: Fault, job_id: str, harm: Harm, base: Baseline, seen: Onlooker | None = None
) -> Result:
    """Read what is left of a run that has ended, and let the oracle speak; `seen` is what was seen meanwhile."""
    own_s = base.hang_s if fault.hangs else 0.0
    expected = Expected(
        states=fault.states,
        attempts_max=fault.attempts_max,
        reasons=fault.reasons or None,
        redo_max=None if base.interval is None else fault.intervals * base.interval,
        series=base.series,
        summary=base.summary,
        damaged=frozenset(harm.damaged),
        due=due(fault, fault.states == frozenset({JobState.SUCCEEDED})),
        harmed_at_ms=harm.at_ms,
        noticed_max_s=_longer(fault.noticed_max_s, own_s),
        stepping_max_s=_longer(fault.stepping_max_s, own_s + base.seconds),  # starting takes less than all of it
        step_s=base.step_s,
    )
    wanted = {job_id: expected}
    left = leftovers(system)
    beside: dict[str, Any] = {"samples": tuple(harm.samples)}
    if seen is not None:
        beside = facts(system, seen, job_id, harm.samples)
        wanted |= dict.fromkeys(seen.beside, calm(base, fault))
        left = tuple(sorted({*left, *seen.observer.orphans}))
    history = system.ask(
        lambda: witness.read(
            system.store, wanted, home=system.home, expected=wanted, orphans=left, rules=rules(system),
            denials=tuple(harm.denials), shown=tuple(harm.shown), operations=system.store.of(list(wanted)), **beside,
        )
    )  # fmt: skip
    verdict = oracle.verdict(history)
    each = history.jobs[0]
    return Result(
        fault=fault,
        job=job_id,
        attempts=each.job.attempt,
        reasons=tuple(attempt.outcome.reason.value for attempt in each.attempts if attempt.outcome),
        cost=oracle.measure(each, harm.at_ms),
        violations=(*verdict.violations, *harm.broken),
        judged=verdict.judged,
        counted=base.last_step > 0,
    )


def rules(system: Throwaway) -> Rules:
    """The settings that the system runs under, and the supervisor's own way to make its decisions again."""
    settings = system.settings
    return Rules(
        backoff_first_s=settings.backoff_first_s,
        backoff_max_s=settings.backoff_max_s,
        poison_after=settings.poison_after,
        restart_intensity=settings.restart_intensity,
        restart_period_s=settings.restart_period_s,
        differs=entry("supervisor", "trackside.replays"),
    )


def leftovers(system: Throwaway) -> tuple[str, ...]:
    """Processes of ended attempts that are still there after their time to go."""
    deadline_s = time.monotonic() + witness.ORPHAN_LIMIT_S
    found = system.ask(lambda: witness.orphans(system.store, system.home))
    while found and time.monotonic() < deadline_s:
        time.sleep(0.05)
        still = system.ask(lambda: witness.orphans(system.store, system.home))
        found = {pid: what for pid, what in found.items() if pid in still}
    return tuple(found.values())


def healed(system: Throwaway, limit_s: float = _HEAL_LIMIT_S) -> None:
    """Wait until every part of the system serves again."""

    def whole() -> bool:
        leads = any(beat.leader and _lives(beat) for beat in system.beats(Role.SUPERVISOR))
        agents = any(_lives(beat) for beat in system.beats(Role.AGENT))
        slots = {slot.id for slot in system.ask(system.store.slots)}
        idle = {beat.slot for beat in system.beats(Role.WORKER) if _lives(beat) and beat.job is None}
        return leads and agents and bool(slots) and slots == idle

    wait_until(whole, limit_s, "the system did not get whole again after the last fault", every_s=0.05)


def _lives(beat: Beat) -> bool:
    """Whether the process behind a beat is there; a beat outlives its process by a TTL."""
    return not beat.stopping and look(beat.pid) is not None


def give_up(system: Throwaway, job_id: str) -> None:
    """Take a job that went wrong out of the next fault's way."""
    try:
        if job_id and not system.job(job_id).state.terminal:
            system.ask(lambda: system.store.cancel(job_id))
            system.ended(job_id, 20.0)
    except (TracksideError, AssertionError):
        return


def _alike(one: dict[str, Any], other: dict[str, Any], differing: list[str]) -> dict[str, Any]:
    names = [*one, *(name for name in other if name not in one)]
    alike = {name: one[name] for name in names if name in one and name in other and oracle.same(one[name], other[name])}
    differing += [name for name in names if name not in alike]
    return alike


def _longer(limit_s: float | None, own_s: float) -> float | None:
    return None if limit_s is None else limit_s + own_s


def _last_step(each: JobHistory) -> int:
    return max((attempt.outcome.last_step or 0 for attempt in each.attempts if attempt.outcome), default=0)


def _seconds(each: JobHistory) -> float:
    """How long an undisturbed job was with its worker."""
    (attempt,) = each.attempts
    return ((attempt.ended_at_ms or 0) - (attempt.assigned_at_ms or 0)) / 1000


def _interval(each: JobHistory) -> int | None:
    steps = [0, *(int(event.data["step"]) for event in each.events if event.kind is EventKind.CHECKPOINT)]
    if len(steps) == 1:
        return None
    return max(after - before for before, after in itertools.pairwise(steps))
