"""One disturbed system for all faults of a run, its undisturbed result, and the table at the end.

TRACKSIDE_CHAOS_SEED sets the chance (printed at the start), TRACKSIDE_CHAOS_JSON names a file for the results.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from chaos.rqinfo import Watch, everywhere, watched
from chaos.scripts import TRAIN
from server_harness import short_home
from trackside.cli import drill
from trackside.cli.rehearse import Baseline, Result, baseline, healed
from trackside.cli.throwaway import QUICK, Throwaway, throwaway
from trackside.oracle import Violation
from trackside.server import client_url

SEED: Final = int(os.environ.get("TRACKSIDE_CHAOS_SEED", "7"))
REPORT: Final = os.environ.get("TRACKSIDE_CHAOS_JSON")
# A training that is frozen for three TTLs has to go on before this and the wait for its stacks are over.
STALL_S: Final = "5"
SETTINGS: Final = {**QUICK, "stall_limit_s": STALL_S, "stall_floor_s": STALL_S, "startup_limit_s": "20"}
_results: list[Result] = []
_figures: list[str] = []


def pytest_report_header() -> str:
    return f"chaos seed: {SEED}"


@pytest.fixture(scope="session")
def script() -> Iterator[Path]:
    with short_home() as folder:
        path = folder / "train.py"
        path.write_text(TRAIN)
        yield path


@pytest.fixture(scope="session")
def shared_system() -> Iterator[Throwaway]:
    with short_home() as home, throwaway(home, slots="cpu:2", settings=SETTINGS) as system:
        yield system


@pytest.fixture(scope="session")
def rq_info(shared_system: Throwaway) -> Iterator[Watch]:
    """`rq info` every second beside all that is done to the shared system."""
    with watched(lambda: client_url(shared_system.settings, "operator", tcp=True)) as watch:
        yield watch


@pytest.fixture
def system(shared_system: Throwaway, rq_info: Watch) -> Throwaway:
    """The system, whole again after whatever the test before did to it."""
    healed(shared_system)
    return shared_system


@pytest.fixture(scope="session")
def undisturbed(shared_system: Throwaway, script: Path) -> Baseline:
    return baseline(shared_system, lambda: shared_system.submit(script))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Chance that depends on the seed and the test alone."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def judged() -> Callable[[Result], None]:
    """Keeps a result for the table, and fails the test unless every promise was held."""

    def take(result: Result) -> None:
        _results.append(result)
        assert result.held, "\n".join([f"seed {SEED}", *drill.told(result)])

    return take


@pytest.fixture
def figure() -> Callable[[str], None]:
    """Takes a figure for the end of the report; nothing is judged by it."""
    return _figures.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from rich.console import Console

    from chaos import alone

    console = Console(width=110)
    by_themselves = alone.results(terminalreporter.stats)
    rq_info = {"listings": everywhere.listings, "starts": everywhere.starts, "tracebacks": everywhere.tracebacks}
    with console.capture() as capture:
        if _results:
            console.print(drill.table(_results))
        if by_themselves:
            console.print(alone.table(by_themselves))
    terminalreporter.write_line(capture.get())
    if _results:
        told = "rq info meanwhile: " + ", ".join(f"{count} {what}" for what, count in rq_info.items())
        blank = f"nothing was seen by which these could be judged: {'; '.join(drill.not_judged(_results)) or '-'}"
        for line in (*_figures, told, blank):
            terminalreporter.write_line(line)
    if REPORT and (_results or by_themselves):
        document = {
            "seed": SEED,
            "rq_info": rq_info,
            "figures": _figures,
            "not_judged": drill.not_judged(_results),
            "faults": [drill.as_json(result) for result in _results],
            "tested_by_themselves": by_themselves,
        }
        Path(REPORT).write_text(json.dumps(document, indent=2) + "\n")


def also(result: Result, *broken: str) -> Result:
    """The result with promises that the test itself saw broken."""
    found = tuple(Violation(invariant="test", job=result.job, what=what) for what in broken)
    return replace(result, violations=result.violations + found)
