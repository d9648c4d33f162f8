"""How long a kill is noticed after, how long until training steps again, and what it costs: a table.

For each of the four kills, on a whole system (`trackside up`, one CPU slot) with a training that steps every 10 ms and
saves every 20 steps. Times are differences of the server's clock and of the steps' own times on the same host. It
measures and judges nothing. Run it with `make bench`, or: PYTHONPATH=tests python bench/recovery.py --trials 5
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from system import TRAIN, System, running_system
from trackside.bus import beats, streams
from trackside.models import EventKind, Role
from trackside.testing import wait_until


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one kill cost. Times in s after the kill; None where it does not apply."""

    noticed_s: float | None
    stepping_s: float
    redone: int
    doubled: int


def point_times(system: System, job_id: str) -> list[tuple[int, int, int]]:
    """(at_ms, attempt, step) of every point on the bus, in order."""
    return [
        (at_ms, number, step)
        for _, number, batch in streams.batches(system.client, job_id)
        for step, at_ms in zip(batch.steps, batch.at_ms, strict=True)
    ]


def after_kill(system: System, job_id: str, killed_ms: int, noticed_s: float | None) -> Trial:
    """Wait for the job's end and read off what the kill cost."""
    job = system.ended(job_id, 120.0)
    assert job.state == "succeeded", job
    points = point_times(system, job_id)
    ended = [event for event in system.events(job_id) if event.kind is EventKind.ENDED and event.at_ms >= killed_ms]
    if job.attempt > 1:
        noticed_s = (ended[0].at_ms - killed_ms) / 1000
        stepping_ms = min(at_ms for at_ms, number, _ in points if number == job.attempt)
        last = max(step for _, number, step in points if number < job.attempt)
        first = min(step for _, number, step in points if number == job.attempt)
        redone = last - first + 1
    else:
        stepping_ms, redone = next(at_ms for at_ms, _, _ in points if at_ms >= killed_ms), 0
    seen = [(number, step) for _, number, step in points]
    starts = sum(event.kind is EventKind.STARTED for event in system.events(job_id))
    doubled = len(seen) - len(set(seen)) + starts - job.attempt
    return Trial(noticed_s=noticed_s, stepping_s=(stepping_ms - killed_ms) / 1000, redone=redone, doubled=doubled)


def kill_training(system: System, job_id: str) -> Trial:
    beat = system.stepping(job_id, 70)
    assert beat.attempt_pid is not None
    return after_kill(system, job_id, system.kill(beat.attempt_pid), None)


def kill_worker(system: System, job_id: str) -> Trial:
    return after_kill(system, job_id, system.kill(system.stepping(job_id, 70).pid), None)


def kill_service(role: Role) -> Callable[[System, str], Trial]:
    def kill(system: System, job_id: str) -> Trial:
        system.stepping(job_id, 70)
        beat = system.beat(role)
        assert beat is not None
        killed_ms = system.kill(beat.pid)

        def successor() -> list[int]:
            found = [other for other in beats.read(system.client).values() if other is not None and other.role is role]
            return [other.at_ms for other in found if other.pid != beat.pid and other.leader is not False]

        came_ms = wait_until(successor, 60.0, f"no new {role}")[0]
        return after_kill(system, job_id, killed_ms, (came_ms - killed_ms) / 1000)

    return kill


KILLS: dict[str, Callable[[System, str], Trial]] = {
    "training process": kill_training,
    "worker": kill_worker,
    "agent": kill_service(Role.AGENT),
    "supervisor": kill_service(Role.SUPERVISOR),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3)
    trials = parser.parse_args().trials
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    script = home / "project" / "train.py"
    script.parent.mkdir()
    script.write_text(TRAIN)
    print("killed            noticed s        stepping again s   steps redone   doubled   (median, worst)")
    with running_system(home / "home", "--slots", "cpu:1", "--no-dashboard") as system:
        for name, kill in KILLS.items():
            found = []
            for _ in itertools.repeat(None, trials):
                steps = "900" if name == "agent" else "400"  # a new agent takes some seconds to import torch
                found.append(kill(system, system.submit(script, args=("--steps", steps))))
            noticed = [trial.noticed_s for trial in found if trial.noticed_s is not None]
            stepping = [trial.stepping_s for trial in found]
            print(
                f"{name:<17} {statistics.median(noticed):6.3f} {max(noticed):7.3f}"
                f"   {statistics.median(stepping):7.3f} {max(stepping):7.3f}"
                f"   {max(trial.redone for trial in found):12d}   {sum(trial.doubled for trial in found):7d}",
                flush=True,
            )
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
