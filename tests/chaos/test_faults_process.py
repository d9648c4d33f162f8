"""Faults done to processes from outside: each is noticed, made good, and costs no more than it may."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from chaos.conftest import also
from chaos.standstill import Blind
from trackside.cli.faults import FAULTS, Fault
from trackside.cli.rehearse import Baseline, Result, rehearse
from trackside.cli.throwaway import Throwaway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
# Nobody reaches the server until the fault is over, and the training goes on: with steps slow enough to outlast it.
BLIND: Final = ("F22", "F26")
ALSO_IN_CI: Final = ("F16a", "F26")
SECOND: Final = ("F17", "F18")  # it must still be training when a second supervisor has come up
SLOW: Final = ("--step-ms", "30")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(each, id=each.id, marks=() if each.quick or each.id in ALSO_IN_CI else pytest.mark.chaos)
        for each in FAULTS
    ],
)
def test_every_promise_is_held_when(
    fault: Fault,
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    blind = Blind(inject=fault.inject)
    if fault.id in BLIND:
        fault = replace(fault, inject=blind)
    argv = SLOW if fault.id in BLIND + SECOND else ()
    result = rehearse(system, fault, lambda: system.submit(script, *argv), undisturbed, rng)
    for line in blind.figures:
        figure(f"{fault.id}: {line}")
    judged(also(result, *blind.broken))
