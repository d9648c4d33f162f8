"""The kit itself: what is to see that a promise was broken does see it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from chaos import rqinfo
from chaos.beside import Beside
from chaos.rqinfo import Watch, watched
from chaos.soak import Soak, Strike, honest, moments
from chaos.standstill import standstill
from trackside.cli.throwaway import Throwaway
from trackside.oracle import Holdings
from trackside.testing import wait_until
from trackside.witness import Observer

pytestmark = pytest.mark.timeout(60)


def steps(*spans: tuple[int, int]) -> list[int]:
    """Times of steps, one every 10 ms in each span."""
    return [at for start, stop in spans for at in range(start, stop, 10)]


def test_a_training_that_stands_still_while_nobody_sees_is_told() -> None:
    assert standstill(steps((0, 9000)), 2000, 5000) == []
    assert standstill(steps((0, 3000), (4000, 9000)), 2000, 5000) == [], "a busy machine"
    (hole,) = standstill(steps((0, 2500), (4100, 9000)), 2000, 5000)
    assert hole.startswith("no step for 1610 ms, 490 ms after")
    assert standstill(steps((0, 2000), (5001, 9000)), 2000, 5000)
    assert standstill([], 2000, 5000)


def test_a_soak_that_proves_nothing_fails() -> None:
    def soak(struck: int, guarded: int) -> Soak:
        done = [Strike(at_s=1.0, at_ms=1, name="training killed", job="a") for _ in range(struck)]
        nobody = cast(Any, None)
        return Soak(
            system=cast(Throwaway, nobody), rng=random.Random(1), job_ids=[], beside=cast(Beside, nobody), kinds={},
            struck=done, guarded=guarded, before=Holdings(at_ms=0),
            seen=Observer(store=nobody, home=Path(), job_ids=[], looks=100),
        )  # fmt: skip

    assert honest(soak(15, 90), 290, 0, 300.0, 15) == []
    found = {
        "faults struck": honest(soak(7, 90), 290, 0, 300.0, 15),
        "listed everything": honest(soak(15, 90), 59, 0, 300.0, 15),
        "tracebacks": honest(soak(15, 90), 290, 1, 300.0, 15),
        "two supervisors": honest(soak(15, 40), 290, 0, 300.0, 15),
    }
    for words, violations in found.items():
        (violation,) = violations
        assert words in str(violation)


@pytest.mark.parametrize("seed", range(20))
def test_the_number_of_faults_in_a_soak_is_fixed(seed: int) -> None:
    due_s = moments(random.Random(seed), 300.0, 20.0)
    assert len(due_s) == 15
    assert due_s == sorted(due_s)
    assert 0 <= due_s[0] <= due_s[-1] <= 300


def test_a_traceback_of_rq_info_fails_whoever_has_it_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rqinfo, "everywhere", Watch())  # the report is about other runs
    with pytest.raises(AssertionError, match="had a traceback"), watched(lambda: "nonsense://nowhere") as watch:
        wait_until(lambda: watch.tracebacks, 30.0, "rq info took that for a server's address")
