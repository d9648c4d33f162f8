"""What a dashboard shows while things break: nothing old is shown as live, whoever stopped telling."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from chaos.eyes import eyes
from trackside.cli.faults import FAULTS, Fault
from trackside.cli.rehearse import Baseline, Result, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(150)]
SEEN: Final = [fault for fault in FAULTS if fault.id in ("F03", "F05", "F16", "F20", "F26")]


@pytest.mark.parametrize("fault", SEEN, ids=lambda fault: fault.id)
def test_nothing_old_is_shown_as_live_when(
    fault: Fault,
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
) -> None:
    with eyes(system) as reader:

        def inject(scene: Scene) -> Harm:
            harm = fault.inject(scene)
            scene.stack.callback(lambda: harm.shown.extend(reader.shown.values()))
            return harm

        seen = replace(fault, id=f"{fault.id}v", name=f"{fault.name}, watched", inject=inject)
        result = rehearse(system, seen, lambda: system.submit(script), undisturbed, rng)
    assert reader.looks > 0
    judged(result)
