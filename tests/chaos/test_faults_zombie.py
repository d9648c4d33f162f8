"""An attempt that was overtaken while its host slept wakes up: it changes nothing, knows why, and is gone at once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from chaos.conftest import also
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Baseline, Result, rehearse
from trackside.cli.scene import Harm, Scene, frozen
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.models import Reason, Role
from trackside.processes import alive, descendants, start_time
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
END_S: Final = 2.0  # from its worker's first look to its end
LIMIT_S: Final = 20.0  # after which nobody waits any longer for it


def belongings(system: Throwaway, job_id: str, number: int) -> tuple[set[object], set[str]]:
    """All that an attempt could still change: its checkpoints' files with their sizes, those accepted, its record.

    And which save it was at: a thread that sleeps in the middle of one wakes there, and may still finish it, under its
    attempt's own name, which nobody resumes from unless it was accepted.
    """
    files, unfinished = [], set()
    for path in (system.home / "jobs" / job_id / "checkpoints").glob(f"*-a{number}*/*"):
        name = path.parent.name.removeprefix(".").partition(".tmp-")[0]  # what is being removed has that form too
        if path.parent.name != name:
            unfinished.add(name)
        with suppress(FileNotFoundError):  # its successor has just removed it
            files.append((name, path.name, path.stat().st_size))
    accepted = [ref.name for ref in system.job(job_id).checkpoints if ref.attempt == number]
    record = system.ask(lambda: system.store.attempt(job_id, number))
    return {*files, *accepted, str(record)}, unfinished


def fenced(system: Throwaway, job_id: str, number: int) -> bool:
    """Whether the trainer's log says that it was."""
    for path in (system.home / "logs").glob("trainer*.log"):
        for line in path.read_text(errors="replace").splitlines():
            if '"attempt_fenced"' in line:
                told = json.loads(line)
                if (told.get("job"), told.get("attempt")) == (job_id, number):
                    return True
    return False


@pytest.mark.parametrize("steps", ["short", pytest.param("long", marks=pytest.mark.chaos)])
def test_an_overtaken_attempt_changes_nothing_and_ends_fenced(
    steps: str,
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    """One that is in the middle of a long step, and so does not stop by itself, is no exception."""
    broken: list[str] = []
    argv: tuple[str, ...] = ("--step-ms", "40")  # the next checkpoint is 800 ms away when it is frozen
    if steps == "long":
        argv = ("--steps", "4", "--cpu-ms", "4000", "--every", "1")  # asleep it would wake on time: work does not
        undisturbed = replace(undisturbed, series={}, summary={}, interval=1, last_step=4)

    def inject(scene: Scene) -> Harm:
        beat = scene.worker()
        number = beat.attempt or 0
        zombie, started = beat.attempt_pid or 0, start_time(beat.attempt_pid or 0)
        saved = system.job(scene.job).checkpoints[:1]
        wait_until(lambda: system.job(scene.job).checkpoints[:1] != saved, 30.0, "no checkpoint is accepted")
        harm = Harm(at_ms=now_ms())
        with frozen([system.beat(Role.AGENT).pid, beat.pid, *descendants(beat.pid)]):
            wait_until(lambda: scene.entries().get(number + 1, 0) > 1, 30.0, "no other attempt logs")
            before, unfinished = belongings(system, scene.job, number)
            assert alive(zombie, started), "it was to be frozen, and is dead"
            harm.samples.append(scene.look())
        woken_s = time.monotonic()
        wait_until(lambda: not alive(zombie, started), LIMIT_S, "the overtaken attempt does not end", every_s=0.002)
        took_s = time.monotonic() - woken_s
        harm.samples.append(scene.look())
        after, _ = belongings(system, scene.job, number)
        wait_until(lambda: fenced(system, scene.job, number), 5.0, "no log says that it was fenced")
        figure(f"F05a: the overtaken attempt, with {steps} steps, ended {took_s:.2f} s after it woke")
        # Its successor may remove what is old; nothing may come or grow.
        changed = [what for what in after - before if not (isinstance(what, tuple) and what[0] in unfinished)]
        broken.extend(f"it changed {what}" for what in changed)
        if took_s > END_S + system.settings.control_poll_s:
            broken.append(f"it lived for {took_s:.2f} s")
        return harm

    fault = Fault(
        id="F05a", name=f"overtaken attempt wakes, {steps} steps", inject=inject,
        reasons=(frozenset({Reason.LOST, Reason.KILLED}),),
    )  # fmt: skip
    judged(also(rehearse(system, fault, lambda: system.submit(script, *argv), undisturbed, rng), *broken))
