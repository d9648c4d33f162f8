"""A long outage at the settings that people have: training goes on all the while, and nothing of it is lost or redone.

TRACKSIDE_OUTAGE_S says how long, 60 unless given; 600 is ten minutes.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from chaos.conftest import also
from chaos.rqinfo import watched
from chaos.standstill import Blind
from server_harness import short_home
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Result, baseline, judge
from trackside.cli.scene import Harm, Scene, frozen
from trackside.cli.throwaway import now_ms, throwaway
from trackside.models import Role
from trackside.server import client_url
from trackside.testing import wait_until

OUTAGE_S: Final = float(os.environ.get("TRACKSIDE_OUTAGE_S", "60"))
pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(180 + 3 * OUTAGE_S)]
STEPS: Final = 240  # of the script, unless told otherwise


def server_away(scene: Scene) -> Harm:
    up = scene.system.beat(Role.LAUNCHER)
    harm = Harm(at_ms=now_ms())
    with frozen([up.pid]):
        os.kill(up.children["redis"], signal.SIGKILL)
        wait_until(lambda: now_ms() - harm.at_ms > 1000 * OUTAGE_S, OUTAGE_S + 30, "time stands still", every_s=0.2)
    return harm


def test_an_outage_far_beyond_every_limit_of_silence_costs_nothing(
    script: Path, rng: random.Random, judged: Callable[[Result], None], figure: Callable[[str], None]
) -> None:
    step_ms = str(int(1.3 * OUTAGE_S * 1000 / STEPS))
    blind = Blind(inject=server_away)
    fault = Fault(id="F22a", name=f"server dead for {OUTAGE_S:g} s", inject=blind, attempts_max=1)
    with (
        short_home() as home,
        throwaway(home, slots="cpu:2", settings={}) as system,
        watched(lambda: client_url(system.settings, "operator", tcp=True)),
    ):
        base = baseline(system, lambda: system.submit(script))
        job_id = system.submit(script, "--step-ms", step_ms)
        system.stepping(job_id, 10)
        with ExitStack() as stack:
            harm = fault.inject(Scene(system=system, job=job_id, rng=rng, stack=stack))
        system.ended(job_id, 60.0 + OUTAGE_S)
        result = judge(system, fault, job_id, harm, base)
    for line in blind.figures:
        figure(f"F22a: {line}")
    judged(also(result, *blind.broken))
