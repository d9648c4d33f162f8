"""Faults that only the training's own process can have: crashes, hangs, errors, full disks, numbers that are none."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from chaos.conftest import SEED, also
from trackside import oracle, witness
from trackside.bus import streams
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Baseline, Result, judge, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.models import EventKind, JobState, Reason
from trackside.processes import descendants
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
AT: Final = 70
FAILED: Final = frozenset({JobState.FAILED})
_KILLED: Final = frozenset({Reason.KILLED})
_ERROR: Final = frozenset({Reason.USER_ERROR})
_STALLED: Final = frozenset({Reason.STALLED})
_CHAOS: Final = pytest.mark.chaos


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A training that harms itself."""

    fault: Fault
    args: tuple[str, ...]
    other: bool = False  # another model than the undisturbed run's, so only the rules of order are judged


def _nothing(scene: Scene) -> Harm:
    return Harm(at_ms=now_ms())


def case(id_: str, name: str, *args: str, other: bool = False, **facts: Any) -> Case:
    return Case(fault=Fault(id=id_, name=name, inject=_nothing, **facts), args=args, other=other)


CASES: Final = {
    "segfault": case("F06", "segmentation fault", "--fault", "segfault", reasons=(_KILLED,)),
    "abort": case("F06a", "abort in native code", "--fault", "abort", reasons=(_KILLED,)),
    "hang": case("F08", "training hangs", "--fault", "hang", reasons=(_STALLED,)),
    "gil-hang": case("F07", "training hangs with the lock held", "--fault", "gil-hang", reasons=(_STALLED,)),
    "always-raise": case(
        "F09", "same error every time", "--fault", "always-raise", states=FAILED, attempts_max=3, reasons=(_ERROR,)
    ),
    "transient": case("F10", "chance errors", "--fault", "transient", attempts_max=15, reasons=(_ERROR,)),
    "exit0": case("F11", "leaves without finishing", "--fault", "exit0", reasons=(_KILLED | _ERROR,)),
    "always-exit0": case(
        "F11a", "always leaves without finishing", "--fault", "always-exit0", states=FAILED, attempts_max=4
    ),
    "memory": case("F12", "host memory", "--fault", "memory", reasons=(frozenset({Reason.OOM_HOST}),)),
    "disk-full": case("F37", "disk full", "--fault", "disk-full", "--width", "4096", other=True),
    "fork": case("I11", "killed with a child of its own", "--fault", "fork", reasons=(_KILLED,)),
    "flood": case("F52", "flood of numbers", "--fault", "flood", attempts_max=1),
    "nan": case(
        "F48", "loss is no number once", "--fault", "nan", attempts_max=4, reasons=(frozenset({Reason.DIVERGED}),)
    ),
    "always-nan": case(
        "F48a", "loss is no number for good", "--fault", "always-nan", states=FAILED, attempts_max=5,
        intervals=4,  # each time it goes a checkpoint further back
        reasons=(frozenset({Reason.DIVERGED}),),
    ),
}  # fmt: skip
QUICK: Final = ("segfault", "always-raise", "exit0", "fork", "nan")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else (_CHAOS,)) for name in CASES],
)
def test_every_promise_is_held_when_it_has(
    name: str,
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    judged: Callable[[Result], None],
) -> None:
    each = CASES[name]
    judged(run_case(system, each, script, undisturbed))


def run_case(system: Throwaway, each: Case, script: Path, base: Baseline) -> Result:
    """Submit the training that harms itself, let it end, and judge; the harm's time is that of its last good step."""
    began_ms = now_ms()
    job_id = system.submit(script, *each.args, "--at", str(AT), "--seed", str(SEED))
    system.ended(job_id, 80.0)
    times = [
        at_ms
        for entry in witness.entries(system.client, job_id)
        if entry.attempt == 1 and entry.batch is not None
        for step, at_ms in zip(entry.batch.steps, entry.batch.at_ms, strict=True)
        if step == AT - 1
    ]
    harm = Harm(at_ms=max(times, default=began_ms))
    base = replace(base, series={}, summary={}, interval=None) if each.other else base
    return judge(system, each.fault, job_id, harm, base)


def test_a_segfault_is_named(system: Throwaway, script: Path, undisturbed: Baseline) -> None:
    job_id = system.submit(script, "--fault", "segfault", "--at", "5", "--steps", "10", "--step-ms", "0")
    system.ended(job_id)
    outcome = system.store.attempt(job_id, 1).outcome
    assert outcome is not None
    assert outcome.signal == "SIGSEGV"


@pytest.mark.chaos
def test_a_flood_of_numbers_arrives_whole(
    system: Throwaway, script: Path, undisturbed: Baseline, judged: Callable[[Result], None]
) -> None:
    result = run_case(system, CASES["flood"], script, undisturbed)
    (each,) = witness.read(system.store, [result.job]).jobs
    short = [name for name, points in oracle.canonical(each).items() if len(points) != undisturbed.last_step]
    judged(also(result, *(f"{name} has gaps" for name in short)))


@pytest.mark.chaos
def test_a_killed_data_loader_is_made_good(
    system: Throwaway, script: Path, undisturbed: Baseline, rng: random.Random, judged: Callable[[Result], None]
) -> None:
    def kill_loader(scene: Scene) -> Harm:
        pid = scene.worker().attempt_pid
        assert pid is not None
        loaders = wait_until(lambda: descendants(pid), 10.0, "no loader process is there")
        harm = Harm(at_ms=now_ms())
        os.kill(scene.rng.choice(loaders), signal.SIGKILL)
        return harm

    fault = Fault(id="F15", name="data loader killed", inject=kill_loader, reasons=(_KILLED | _ERROR,))
    # Loaders draw from the random state, so this run is compared with nothing.
    base = replace(undisturbed, series={}, summary={})
    judged(rehearse(system, fault, lambda: system.submit(script, "--fault", "loader"), base, rng))


def test_a_checkpoint_folder_that_is_gone_costs_the_checkpoints_and_is_told(
    system: Throwaway, script: Path, undisturbed: Baseline, judged: Callable[[Result], None]
) -> None:
    """The training itself wants for nothing: it goes on to its end in one attempt, and failed saves are told."""
    job_id = system.submit(script, "--fault", "disk-gone", "--at", str(AT))
    job = system.ended(job_id, 80.0)
    fault = Fault(id="F40", name="checkpoint folder gone", inject=_nothing, attempts_max=1)
    spoiled = {ref.name for ref in job.checkpoints}
    base = replace(undisturbed, interval=None)
    result = judge(system, fault, job_id, Harm(at_ms=now_ms(), damaged=spoiled), base)
    notes = [event for _, event in streams.history(system.client, job_id) if event.kind is EventKind.NOTE]
    told = any("was not written" in str(event) for event in notes)
    judged(result if told else also(result, "nothing says that checkpoints were not written"))
