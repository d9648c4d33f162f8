"""Faults done to processes from outside: each is noticed, made good, and costs no more than it may."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from trackside.cli.faults import FAULTS, Fault
from trackside.cli.rehearse import Baseline, Result, rehearse
from trackside.cli.throwaway import Throwaway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each.id, marks=() if each.quick else pytest.mark.chaos) for each in FAULTS],
)
def test_every_promise_is_held_when(
    fault: Fault,
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
) -> None:
    judged(rehearse(system, fault, lambda: system.submit(script), undisturbed, rng))
