"""A server whose memory or disk is full: it is taken for one that is away, people are told, and nothing is lost."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from chaos.away import Away, away
from chaos.conftest import also
from chaos.standstill import journal_of, standstill, step_times
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Result, healed, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import now_ms
from trackside.server import ServerBinary
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(150)]
ALARM_S: Final = 10.0
SLOW: Final = ("--step-ms", "40")  # it still trains when the server is whole again
STATE: Final = ("ts:job:*", "ts:jobs*", "ts:attempt:*", "ts:history:*", "ts:metrics:*", "ts:output:*", "ts:slots")


@pytest.fixture(scope="module")
def full(server_binary: ServerBinary, script: Path) -> Iterator[Away]:
    with away(server_binary, script) as it:
        yield it


def memory(full: Away) -> tuple[Callable[[], object], str]:
    """Not a byte more, and nothing is thrown away to make room; returns the remedy and what people are to be told."""
    full.admin().config_set("maxmemory", "1mb")
    return lambda: full.admin().config_set("maxmemory", "0"), "out of memory"


def disk(full: Away) -> tuple[Callable[[], object], str]:
    """The server's files grow no further."""
    full.limit_files(full.data_bytes() + 512)
    return lambda: full.limit_files(resource.RLIM_INFINITY), "cannot write to its disk"


def state(full: Away) -> set[bytes]:
    with full.admin() as admin:
        return {key for pattern in STATE for key in admin.keys(pattern)}


def told(full: Away, *words: str) -> str:
    """What a person reads who runs a command now."""
    command = [sys.executable, "-m", "trackside", "--home", str(full.system.home), *words]
    answer = subprocess.run(command, env=full.system.env, capture_output=True, text=True, check=False, timeout=60)
    return answer.stdout + answer.stderr


def steps(full: Away, job_id: str) -> int:
    """How far the training has come by its own journal, which needs no server."""
    return len(step_times(journal_of(full.system.home, job_id, 1)))


@pytest.mark.parametrize(
    ("id_", "name", "fill"), [("F25", "server out of memory", memory), ("F27", "server's disk full", disk)]
)
def test_training_goes_on_people_are_told_and_all_arrives_later(
    id_: str,
    name: str,
    fill: Callable[[Away], tuple[Callable[[], object], str]],
    full: Away,
    script: Path,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    broken: list[str] = []

    def inject(scene: Scene) -> Harm:
        system = full.system
        before, began, began_s = state(full), steps(full, scene.job), time.monotonic()
        harm = Harm(at_ms=now_ms())
        remedy, words = fill(full)
        scene.stack.callback(remedy)
        alarms = ("bus_away", "bus_lost", "beat_missed")

        def alarm() -> bool:
            return any(words in str(line.get("error")) for event in alarms for line in full.logged(event))

        wait_until(alarm, ALARM_S, f"no log says {words!r}")
        alarm_s = time.monotonic() - began_s
        for command in (("doctor",), ("ps",)):
            said = " ".join(told(full, *command).split())
            if words not in said:
                broken.append(f"`trackside {command[0]}` does not say {words!r}: {said}")
        time.sleep(max(0.0, 2 * system.settings.beat_ttl_s - (time.monotonic() - began_s)))
        done, took_s = steps(full, scene.job) - began, time.monotonic() - began_s
        times = step_times(journal_of(system.home, scene.job, 1))
        broken.extend(standstill(times, harm.at_ms, now_ms()))
        if missing := before - state(full):
            broken.append(f"the server dropped {sorted(missing)[:3]}")
        figure(f"{id_}: alarm after {alarm_s:.2f} s; {done} steps in the {took_s:.1f} s without writes")
        remedy()
        return harm

    healed(full.system)
    fault = Fault(id=id_, name=name, inject=inject, attempts_max=1)
    result = rehearse(full.system, fault, lambda: full.system.submit(script, *SLOW), full.undisturbed, rng)
    judged(also(result, *broken))
