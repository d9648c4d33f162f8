"""Many jobs on four slots of two hosts while faults strike at chance moments, one every twenty seconds on average.

Two supervisors run all the time, and the second host's line to the server is one of the things that break. How many
faults there are is fixed, when they come is chance; were both chance, one five-minute soak in forty would see half of
them at most. The kinds come in turns of chance order, so that a short soak sees each. The oracle looks all the time and
judges everything at the end.

Prints a table, writes JSON, exits 1 if any promise was broken. Run it with `make soak` (an hour) or
`make soak SECONDS=300`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from chaos.beside import HOST, Beside, beside
from chaos.eyes import Eyes, eyes
from chaos.menu import Kind, menu
from chaos.rqinfo import watched
from chaos.scripts import TRAIN
from chaos.soaktable import show
from trackside import oracle, witness
from trackside.cli.onlooker import held
from trackside.cli.rehearse import leftovers, rules
from trackside.cli.scene import Scene
from trackside.cli.throwaway import QUICK, Throwaway, throwaway
from trackside.errors import TracksideError
from trackside.models import EventKind, JobSpec, JobState, Reason, Role
from trackside.oracle import Expected, History, Holdings, JobHistory, Violation
from trackside.server import client_url
from trackside.testing import wait_until

STEP_MS: Final = 20.0
EVERY: Final = 25
BUSY_SHARE: Final = 0.85  # of the time that the jobs would take undisturbed, so that they end about when the time is up
STALL_S: Final = 10.0
SETTINGS: Final = {
    **QUICK, "host": "alpha", "stall_limit_s": str(STALL_S), "stall_floor_s": str(STALL_S),
    "startup_limit_s": str(3 * STALL_S),  # it holds for the second step too, and a hang may strike before that
}  # fmt: skip
STUCK_S: Final = 120.0  # every limit here is 30 s at most, so only what is stuck takes that long, on any machine
# All that an attempt may end with, given what strikes.
DUE: Final = frozenset({Reason.KILLED, Reason.LOST, Reason.PREEMPTED, Reason.STALLED, Reason.DIVERGED, Reason.FENCED})
_RETRY_S: Final = 5.0  # for a fault that finds nobody to strike


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What was asked for."""

    seconds: float
    mean_s: float  # between two faults
    jobs: int
    slots: int  # of both hosts
    seed: int

    @property
    def steps(self) -> int:
        """Of each job."""
        return max(60, int(self.seconds * self.slots / self.jobs * BUSY_SHARE / (STEP_MS / 1000)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A fault that was done."""

    at_s: float  # since the beginning
    at_ms: int
    name: str
    job: str  # that was aimed at


@dataclass(kw_only=True, slots=True)
class Soak:
    """What happened so far."""

    system: Throwaway
    rng: random.Random
    job_ids: list[str]
    beside: Beside
    kinds: dict[str, Kind]
    seen: witness.Observer
    before: Holdings
    due_s: list[float] = field(default_factory=list)  # moments at which a fault is due, since the beginning
    turn: list[str] = field(default_factory=list)  # kinds that have not struck in this turn
    struck: list[Strike] = field(default_factory=list)
    missed: int = 0
    guarded: int = 0  # looks that saw more than one supervisor

    def strike(self, at_s: float) -> bool:
        """Do the next kind of fault to a job of chance; whether anybody was there to be struck."""
        if not self.turn:
            self.turn = self.rng.sample(sorted(self.kinds), len(self.kinds))
        name = self.turn[-1]
        kind = self.kinds[name]
        try:
            workers = [beat for beat in self.system.beats(Role.WORKER) if kind.host in (None, beat.host)]
            running = sorted(beat.job for beat in workers if beat.job in self.job_ids and beat.job)
            if not running:
                return False
            with ExitStack() as stack:
                scene = Scene(system=self.system, job=self.rng.choice(running), rng=self.rng, stack=stack)
                harm = kind.inject(scene)
        except (TracksideError, LookupError, AssertionError):  # it had just ended, or its victim is not back yet
            return False
        self.turn.pop()
        self.struck.append(Strike(at_s=round(at_s, 1), at_ms=harm.at_ms, name=name, job=scene.job))
        return True

    def look(self) -> bool:
        """Look once; whether every job has ended."""
        sample = self.seen.look()
        if sample is None:
            return False
        with suppress(TracksideError):
            self.guarded += len(self.system.beats(Role.SUPERVISOR)) > 1
        return all(state.terminal for state in sample.states.values()) and len(sample.states) == len(self.job_ids)


def asked() -> tuple[Plan, Path | None]:
    """What the command line asks for, and where the report is to go."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--mean-s", type=float, default=20.0, help="between two faults")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    return Plan(seconds=args.seconds, mean_s=args.mean_s, jobs=args.jobs, slots=args.slots, seed=seed), args.json


def main() -> int:
    plan, to = asked()
    console = Console(highlight=False, width=110)
    console.print(
        f"Seed {plan.seed}: {plan.jobs} jobs of {plan.steps} steps, {plan.slots} slots, a fault every {plan.mean_s:g} s"
    )
    home = Path(tempfile.mkdtemp(prefix="ts-soak-"))
    report = soaked(plan, home, console)
    show(report, console)
    if to is not None:
        to.write_text(json.dumps(report, indent=2) + "\n")
    if report["violations"]:
        console.print(f"the soak's home is kept: {home}")
        return 1
    shutil.rmtree(home, ignore_errors=True)
    return 0


def soaked(plan: Plan, home: Path, console: Console) -> dict[str, Any]:
    """Do it all; the report."""
    script = home / "project" / "train.py"
    poison = home / "poison"
    for folder in (script.parent, poison):
        folder.mkdir()
    script.write_text(TRAIN)
    there = plan.slots // 2
    with (
        throwaway(home / "home", slots=f"cpu:{plan.slots - there}", settings=SETTINGS) as system,
        watched(lambda: client_url(system.settings, "operator", tcp=True), judge=False) as rq_info,
        beside(system, home / HOST, there, plan.seed) as second,
    ):
        base, step_s, spec = undisturbed(system, script, plan.steps, plan.slots, poison)
        before, job_ids = held(system, []), submit(system, spec, plan.jobs)
        soak = Soak(
            system=system, rng=random.Random(plan.seed), job_ids=job_ids, beside=second, kinds=menu(second, poison),
            seen=witness.Observer(store=system.store, home=system.home, job_ids=job_ids), before=before,
        )  # fmt: skip
        began_s, listed = time.monotonic(), rq_info.listings
        with eyes(system) as reader:
            disturb(soak, plan.seconds, plan.mean_s, console)
        took_s = time.monotonic() - began_s
        listed = rq_info.listings - listed
        history, violations, not_judged = judge(soak, base, reader)
    violations += honest(soak, listed, rq_info.tracebacks, took_s, planned(plan.seconds, plan.mean_s))
    return told(
        soak,
        history,
        violations,
        rq_info_listings=listed,
        rq_info_tracebacks=rq_info.tracebacks,
        not_judged=not_judged,
        seed=plan.seed,
        took_s=took_s,
        share=plan.jobs * plan.steps * step_s / plan.slots / took_s,
        step_s=step_s,
        steps=plan.steps,
    )


def undisturbed(
    system: Throwaway, script: Path, steps: int, slots: int, poison: Path
) -> tuple[JobHistory, float, JobSpec]:
    """As many runs at once as there are slots: what they give, and how long a step of theirs takes."""
    argv = ("--steps", str(steps), "--step-ms", str(STEP_MS), "--every", str(EVERY), "--poison", str(poison))
    job_ids = [system.submit(script, *argv) for _ in range(slots)]
    for job_id in job_ids:
        assert system.ended(job_id, 120.0 + steps).state is JobState.SUCCEEDED, system.job(job_id)
    history = witness.read(system.store, job_ids, home=system.home, rules=rules(system))
    assert not oracle.check(history), oracle.check(history)
    paces = []
    for each in history.jobs:
        times = [at for entry in each.entries if entry.batch is not None for at in entry.batch.at_ms]
        paces.append((max(times) - min(times)) / 1000 / (steps - 1))
    return history.jobs[0], statistics.fmean(paces), system.job(job_ids[0]).spec


def submit(system: Throwaway, spec: JobSpec, count: int) -> list[str]:
    """Jobs with the undisturbed runs' own specification; chance strikes some of them often, so retries are many."""
    spec = replace(spec, retries=100)
    return [system.store.submit(f"soak-{number:02d}", "soak", spec).id for number in range(count)]


def planned(seconds: float, mean_s: float) -> int:
    """How many faults are due in a soak."""
    return max(1, round(seconds / mean_s))


def moments(rng: random.Random, seconds: float, mean_s: float) -> list[float]:
    """When they are due: given their number, the moments of a Poisson process are independent and uniform."""
    return sorted(rng.uniform(0.0, seconds) for _ in range(planned(seconds, mean_s)))


def disturb(soak: Soak, seconds: float, mean_s: float, console: Console) -> None:
    """Strike at chance moments until the time is up, then let everything end."""
    soak.due_s = moments(soak.rng, seconds, mean_s)
    began_s = time.monotonic()
    told_s = 0.0
    while not soak.look():
        soak.beside.keep()
        at_s = time.monotonic() - began_s
        if soak.due_s and at_s >= soak.due_s[0]:
            if soak.strike(at_s):
                soak.due_s.pop(0)
            elif at_s - soak.due_s[0] > _RETRY_S:
                soak.due_s.pop(0)
                soak.missed += 1
                soak.turn.insert(0, soak.turn.pop())
        if at_s - told_s >= 30:
            told_s = at_s
            states = Counter(soak.seen.samples[-1].states.values()) if soak.seen.samples else {}
            words = ", ".join(f"{count} {state}" for state, count in states.items())
            console.print(f"  {at_s:6.0f} s  {len(soak.struck)} faults  {words}")
        if at_s > 2 * seconds + 120:
            return  # what has not ended by now is stuck, and the oracle says so
        time.sleep(0.2)


def honest(soak: Soak, listings: int, tracebacks: int, took_s: float, due: int) -> list[Violation]:
    """What would make this soak one that proves nothing."""
    found = []
    if len(soak.struck) < due / 2:
        found.append(f"{len(soak.struck)} faults struck, {due} were due")
    if tracebacks:
        found.append(f"rq info had {tracebacks} tracebacks")
    if listings < took_s / 5:
        found.append(f"rq info listed everything {listings} times in {took_s:.0f} s")
    if soak.guarded < soak.seen.looks / 2:
        found.append(f"only {soak.guarded} of {soak.seen.looks} looks saw two supervisors")
    return [Violation(invariant="soak", job=None, what=what) for what in found]


def judge(soak: Soak, base: JobHistory, reader: Eyes) -> tuple[History, list[Violation], tuple[str, ...]]:
    """The history, what it breaks, and the rules that had nothing to judge."""
    expected = Expected(
        states=frozenset({JobState.SUCCEEDED}),
        redo_max=EVERY,
        series=oracle.canonical(base),
        summary=oracle.summary(base),
        due=DUE,
        noticed_max_s=STUCK_S,
        stepping_max_s=STUCK_S,
    )
    system = soak.system
    wait_until(lambda: system.beats(Role.SUPERVISOR), 60.0, "no supervisor is left at the end")
    history = witness.read(
        system.store, soak.job_ids, home=system.home, expected=dict.fromkeys(soak.job_ids, expected),
        samples=tuple(soak.seen.samples), orphans=(*sorted(soak.seen.orphans), *leftovers(system)),
        holdings=(soak.before, held(system, soak.job_ids)), shown=tuple(reader.shown.values()),
        operations=system.store.of(soak.job_ids), rules=rules(system),
    )  # fmt: skip
    verdict = oracle.verdict(history)
    return history, list(verdict.violations), verdict.not_judged


def told(soak: Soak, history: History, violations: list[Violation], **facts: Any) -> dict[str, Any]:
    """The report as plain data."""
    reasons = Counter(
        attempt.outcome.reason.value for each in history.jobs for attempt in each.attempts if attempt.outcome
    )
    costs = [oracle.measure(each, 0) for each in history.jobs]
    noticed = [
        int(event.data["noticed_after_ms"])
        for each in history.jobs
        for event in each.events
        if event.kind is EventKind.ENDED and event.data.get("noticed_after_ms") is not None
    ]
    return {
        **facts,
        "faults": len(soak.struck),
        "faults_by_kind": dict(Counter(strike.name for strike in soak.struck)),
        "recoveries_by_kind": recoveries(soak.struck, history),
        "faults_missed": soak.missed,
        "looks": soak.seen.looks,
        "looks_without_a_server": soak.seen.blind,
        "looks_with_two_supervisors": soak.guarded,
        "starts_of_second_supervisor": soak.beside.supervisor.starts,
        "starts_of_second_host": soak.beside.host.starts,
        "jobs": len(soak.job_ids),
        "jobs_by_state": dict(Counter(each.job.state.value for each in history.jobs)),
        "attempts": sum(each.job.attempt for each in history.jobs),
        "attempts_by_reason": dict(reasons),
        "steps_done_again": sum(cost.redone for cost in costs),
        "steps_lost": sum(cost.lost for cost in costs),
        "doubled": sum(cost.doubled for cost in costs),
        "noticed_after_ms_median": statistics.median(noticed) if noticed else None,
        "violations": [str(violation) for violation in violations],
        "struck": [(strike.at_s, strike.name, strike.job) for strike in soak.struck],
    }


def recoveries(struck: list[Strike], history: History) -> dict[str, dict[str, Any]]:
    """By kind of fault, how soon the end of the attempt aimed at was noticed, and a later one had done a step.

    Only where both came before the next fault: what comes after may be that one's doing.
    """
    by_id = {each.job.id: each for each in history.jobs}
    found: dict[str, list[tuple[float, float]]] = {}
    for strike, after in itertools.zip_longest(struck, struck[1:]):
        cost = oracle.measure(by_id[strike.job], strike.at_ms)
        left_s = (after.at_ms - strike.at_ms) / 1000 if after is not None else math.inf
        if cost.noticed_s is not None and cost.stepping_s is not None and cost.stepping_s < left_s:
            found.setdefault(strike.name, []).append((cost.noticed_s, cost.stepping_s))
    return {name: _percentiles(times) for name, times in sorted(found.items())}


def _percentiles(times: list[tuple[float, float]]) -> dict[str, Any]:
    noticed, stepping = (sorted(column) for column in zip(*times, strict=True))
    return {
        "count": len(times),
        "noticed_s": {"p50": statistics.median(noticed), "p95": _p95(noticed)},
        "stepping_s": {"p50": statistics.median(stepping), "p95": _p95(stepping)},
    }


def _p95(values: list[float]) -> float:
    return values[math.ceil(0.95 * len(values)) - 1]


if __name__ == "__main__":
    sys.exit(main())
