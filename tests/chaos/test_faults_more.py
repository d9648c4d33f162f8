"""Faults around a training: a rank of several processes, a host's wall clock, and many who look at the dashboard."""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from chaos.clocks import Clocks
from chaos.conftest import SETTINGS, also
from chaos.eyes import eyes
from chaos.ranks import RANKS
from chaos.viewers import Viewers, dashboard
from server_harness import short_home
from trackside import witness
from trackside.bus.client import connect
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Baseline, Result, baseline, healed, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway, now_ms, throwaway
from trackside.models import Reason, Role
from trackside.processes import descendants
from trackside.server import client_url
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(240)]
HOUR_S: Final = 3600.0
VIEWERS: Final = 50
WINDOW_S: Final = 6.0  # in which the server's commands are counted


# -- F49: one rank of several ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "train.py"
    path.write_text(RANKS)
    return path


@pytest.fixture(scope="module")
def together(shared_system: Throwaway, ranks: Path) -> Baseline:
    """What two ranks give undisturbed."""
    healed(shared_system)
    return baseline(shared_system, lambda: shared_system.submit(ranks))


def other_rank(pid: int) -> int:
    """The process that the script has spawned to be rank 1."""

    def found() -> list[int]:
        lines = {each: (Path("/proc") / str(each) / "cmdline").read_bytes() for each in descendants(pid)}
        return [each for each, line in lines.items() if b"spawn_main" in line]

    (rank,) = wait_until(found, 10.0, "no second rank is there")
    return rank


def _strike(signum: signal.Signals, *, first: bool) -> Callable[[Scene], Harm]:
    def inject(scene: Scene) -> Harm:
        pid = scene.worker().attempt_pid
        assert pid is not None
        victim = pid if first else other_rank(pid)
        harm = Harm(at_ms=now_ms())
        os.kill(victim, signum)
        return harm

    return inject


RANK_FAULTS: Final = [
    Fault(
        id="F49", name="one rank killed", inject=_strike(signal.SIGKILL, first=False),
        reasons=(frozenset({Reason.USER_ERROR, Reason.KILLED}),),
    ),
    Fault(
        id="F49a", name="the first rank killed", inject=_strike(signal.SIGKILL, first=True),
        reasons=(frozenset({Reason.KILLED}),),
    ),
    Fault(
        id="F49b", name="one rank hangs", inject=_strike(signal.SIGSTOP, first=False),
        reasons=(frozenset({Reason.STALLED}),),
    ),
]  # fmt: skip


@pytest.mark.parametrize("fault", RANK_FAULTS, ids=lambda fault: fault.id)
def test_all_ranks_end_and_one_attempt_is_counted_with(
    fault: Fault,
    system: Throwaway,
    ranks: Path,
    together: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
) -> None:
    judged(rehearse(system, fault, lambda: system.submit(ranks), together, rng))


# -- F50: a host's wall clock ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clocked() -> Iterator[tuple[Throwaway, Clocks]]:
    """A system whose services' wall clocks can be set."""
    with short_home() as home, pytest.MonkeyPatch.context() as patch:
        clocks = Clocks(home / "clocks")
        known = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(clocks.folder), *([known] if known else [])]))
        with throwaway(home / "home", slots="cpu:2", settings=SETTINGS) as system:
            yield system, clocks


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
@pytest.mark.parametrize("service", ["supervisor", "trainer"])
def test_a_wall_clock_that_is_set_changes_nothing(
    service: str,
    off_s: float,
    clocked: tuple[Throwaway, Clocks],
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
) -> None:
    """Set in the middle of a run, and back again, as after a time server's mistake.

    A supervisor asks its wall clock when it starts and never again, so another one starts under the wrong time.
    """
    system, clocks = clocked

    def set_clock(scene: Scene) -> Harm:
        harm = Harm(at_ms=now_ms())
        clocks.put(service, off_s)
        scene.stack.callback(clocks.put, service, 0.0)
        if service == "supervisor":
            os.kill(system.beat(Role.SUPERVISOR).pid, signal.SIGKILL)
        clocks.await_asked(service, off_s)
        return harm

    name = f"{service}'s clock an hour {'ahead' if off_s > 0 else 'behind'}"
    fault = Fault(id="F50", name=name, inject=set_clock, attempts_max=1, stepping_max_s=None, bystander=True)
    # Long enough that a supervisor which has just started sees clearly, and judges silence, before the run is over.
    result = rehearse(system, fault, lambda: system.submit(script, "--step-ms", "60"), undisturbed, rng)
    judged(without_stepping(result))


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def test_a_death_under_a_wrong_wall_clock_is_one_retry(
    off_s: float,
    clocked: tuple[Throwaway, Clocks],
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
) -> None:
    system, clocks = clocked

    def set_and_kill(scene: Scene) -> Harm:
        clocks.put("trainer", off_s)
        scene.stack.callback(clocks.put, "trainer", 0.0)
        clocks.await_asked("trainer", off_s)
        worker = scene.worker()
        harm = Harm(at_ms=now_ms())
        os.kill(worker.pid, signal.SIGKILL)
        return harm

    name = f"worker killed, clock an hour {'ahead' if off_s > 0 else 'behind'}"
    died = (frozenset({Reason.KILLED}),)
    fault = Fault(id="F50a", name=name, inject=set_and_kill, reasons=died, stepping_max_s=None, bystander=True)
    judged(without_stepping(rehearse(system, fault, lambda: system.submit(script), undisturbed, rng)))


def without_stepping(result: Result) -> Result:
    """The result without the time until it stepped again, which is told in the training host's wall clock."""
    return result if result.cost is None else replace(result, cost=replace(result.cost, stepping_s=None))


# -- F54: many who look ------------------------------------------------------------------------------------------------


def commands_in_window(system: Throwaway) -> int:
    """Commands that the server did while WINDOW_S went by."""
    client = connect(client_url(system.settings, "admin"))
    try:
        before = _commands(client.info("commandstats"))
        until_s = time.monotonic() + WINDOW_S
        wait_until(lambda: time.monotonic() >= until_s, WINDOW_S + 10, "time stands still", every_s=0.1)
        return _commands(client.info("commandstats")) - before
    finally:
        client.close()


def _commands(stats: dict[str, dict[str, int]]) -> int:
    return sum(each["calls"] for each in stats.values())


def step_times_ms(system: Throwaway, job_id: str, killed_ms: list[int]) -> dict[str, list[int]]:
    """How long the training's steps took while the dashboard had its viewers, and after it was killed."""
    points = [
        at for each in witness.entries(system.client, job_id) if each.batch is not None for at in each.batch.at_ms
    ]
    found: dict[str, list[int]] = {}
    for before, after in itertools.pairwise(points):
        when = "with the viewers" if after <= min(killed_ms, default=0) else "after the dashboard's death"
        found.setdefault(when, []).append(after - before)
    return found


def test_many_viewers_cost_the_server_no_more_than_one_and_the_training_nothing(
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with dashboard(system) as (process, port), eyes(system) as reader:
        viewers = Viewers(port)
        try:
            viewers.come(1)
            wait_until(lambda: viewers.reading() >= 1, 60.0, f"nobody sees the dashboard: {viewers.failed}")
            of_one = commands_in_window(system)
            viewers.come(VIEWERS - 1)
            wait_until(
                lambda: viewers.reading() >= VIEWERS, 120.0,
                f"not everybody sees the dashboard: {viewers.failed[:3]}", every_s=0.1,
            )  # fmt: skip
            of_many = commands_in_window(system)

            killed_ms: list[int] = []

            def kill_dashboard(scene: Scene) -> Harm:
                harm = Harm(at_ms=now_ms())
                scene.stack.callback(lambda: harm.shown.extend(reader.shown.values()))
                killed_ms.append(harm.at_ms)
                process.kill()
                process.wait()
                return harm

            fault = Fault(
                id="F54", name=f"{VIEWERS} viewers, dashboard killed", inject=kill_dashboard, attempts_max=1,
                bystander=True,
            )  # fmt: skip
            result = rehearse(system, fault, lambda: system.submit(script), undisturbed, rng)
        finally:
            viewers.leave()
    with capsys.disabled():
        print(f"\nserver commands in {WINDOW_S:g} s: {of_one} with one viewer, {of_many} with {VIEWERS}")
        for when, times in step_times_ms(system, result.job, killed_ms).items():
            print(f"a step {when}: {statistics.median(times):.1f} ms, median of {len(times)}")
    told = () if of_many < 1.5 * of_one else (f"{of_many} commands with {VIEWERS} viewers, {of_one} with one",)
    judged(also(result, *told))
