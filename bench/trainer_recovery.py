"""How fast the trainer starts attempts and notices deaths, on this machine: `python bench/trainer_recovery.py`.

One agent, one CPU slot, default settings, an embedded server. Times are medians (smallest - largest) in milliseconds.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from trackside.bus import streams
from trackside.bus.acl import USERS
from trackside.models import EventKind, Job
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trainer_harness import Trainer, kill, steps_script


def first_step_ms(trainer: Trainer, job: Job) -> float:
    """From the assignment's transaction to the first line that the script logs; one machine, one clock."""
    trainer.ended(job, 60)
    events = [event for _, event in streams.history(trainer.client, job.id)]
    assigned = next(event.at_ms for event in events if event.kind is EventKind.ASSIGNED)
    first = next(batch.at_ms[0] for _, _, batch in streams.batches(trainer.client, job.id) if batch.at_ms)
    return first - assigned


def warm(trainer: Trainer) -> float:
    return first_step_ms(trainer, trainer.assign(steps_script(3)))


def cold(trainer: Trainer) -> float:
    return first_step_ms(trainer, trainer.assign(steps_script(3), python=sys.executable))


TORCH = "import torch\nopt = torch.optim.Adam(torch.nn.Linear(2, 1).parameters())\n"


def warm_torch(trainer: Trainer) -> float:
    return first_step_ms(trainer, trainer.assign(TORCH + steps_script(3)))


def cold_torch(trainer: Trainer) -> float:
    return first_step_ms(trainer, trainer.assign(TORCH + steps_script(3), python=sys.executable))


def child_killed(trainer: Trainer) -> float:
    job = trainer.assign(steps_script(100_000, 0.01))
    pid = trainer.running(job, step=3)
    before_s = time.monotonic()
    kill(pid)
    trainer.ended(job)
    return (time.monotonic() - before_s) * 1000


def worker_killed(trainer: Trainer) -> tuple[float, float]:
    job = trainer.assign(steps_script(100_000, 0.01))
    trainer.running(job, step=3)
    worker = trainer.worker_pid()
    before_s = time.monotonic()
    kill(worker)
    trainer.ended(job)
    ended_s = time.monotonic() - before_s
    wait_until(lambda: trainer.worker_pid() != worker, 10, "no new worker", every_s=0.002)
    return ended_s * 1000, (time.monotonic() - before_s) * 1000


def told(name: str, values: list[float]) -> None:
    median = statistics.median(values)
    print(f"{name:45} {median:7.0f}  ({min(values):.0f} - {max(values):.0f}, n={len(values)})")


def repeat(count: int, measure: Callable[[Trainer], float], trainer: Trainer) -> list[float]:
    return [measure(trainer) for _ in range(count)]


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    with EmbeddedServer(home, extra_users={"tester": ("~*", "&*", "+@all")}) as server:
        urls = {user: server.url(user) for user in (*USERS, "tester")}
        with Trainer(home / "trainer", urls, settings={"profile": "default", "restart_intensity": 50}) as trainer:
            warm(trainer)
            told("assigned -> first step, forked", repeat(15, warm, trainer))
            told("assigned -> first step, forked, with torch", repeat(15, warm_torch, trainer))
            told("assigned -> first step, other interpreter", repeat(5, cold, trainer))
            told("the same, with torch", repeat(3, cold_torch, trainer))
            told("training process killed -> end recorded", repeat(10, child_killed, trainer))
            killed = [worker_killed(trainer) for _ in range(10)]
            told("worker killed -> end recorded", [ended for ended, _ in killed])
            told("worker killed -> new worker beats", [back for _, back in killed])
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
