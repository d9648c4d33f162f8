"""A bus full of realistic data, written the way the services write it; nothing but the bus runs."""

from __future__ import annotations

import itertools
import math
import random
import sys
import time
from dataclasses import replace
from typing import Any

from trackside.bus import beats, keys, streams
from trackside.bus.client import Client, connect, now_ms
from trackside.codec import number_or_name
from trackside.models import (
    Batch,
    Beat,
    CheckpointRef,
    EventKind,
    Failure,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
    Role,
    Slot,
)
from trackside.store import Change, Store

HOSTILE = "<script>alert(1)</script> **bold** [x](javascript:alert(1)) :red[ok] $x$ \x1b[31mred\x1b[0m \u202egnp"
_PIECES = itertools.count(1)  # of all streams, so that every entry's id is larger than those before
GPU = "GPU-5f0c3c1e-0000-4000-8000-00000000beef"
SLOTS = (
    Slot(id="alpha-cpu-0", host="alpha", kind="cpu", storage="s1", threads=2),
    Slot(id="alpha-cpu-1", host="alpha", kind="cpu", storage="s1", threads=2),
    Slot(
        id="beta-gpu-0",
        host="beta",
        kind="gpu",
        storage="s2",
        threads=8,
        gpu_uuid=GPU,
        gpu_name="NVIDIA RTX 4090",
        gpu_memory_mib=24564,
    ),
    Slot(id="beta-gpu-1", host="beta", kind="gpu", storage="s2", threads=8, gpu_name="NVIDIA RTX 4090", cordoned=True),
    Slot(id="gamma-cpu-0", host="gamma", kind="cpu", storage="s3", threads=4),
)
TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 41, in <module>
    loss = model(batch["pixels"]).mean()
RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x784 and 768x10)
"""

HANG = (
    "the process was sleeping",
    "stacks of its threads:\n"
    "Thread 0x00007f31 (most recent call first):\n"
    '  File "/usr/lib/python3.11/queue.py", line 171 in get\n'
    '  File "train.py", line 88 in next_batch\n'
    '  File "train.py", line 112 in <module>',
    "last output:\nstep 239 loss 1.3\nstep 240 loss 1.3",
)


class Seed:
    """Writes as the supervisor's user, which may write everything of ours."""

    def __init__(self, url: str) -> None:
        self.client: Client = connect(url, name="seed")
        self.store = Store(self.client, by="supervisor:seed")
        self.random = random.Random(7)

    def submit(self, job_id: str, name: str, *, retries: int = 4) -> None:
        program = Program(kind="script", target="train.py", argv=("--lr", "0.1"))
        spec = JobSpec(program=program, params={"lr": 0.1, "width": 256}, retries=retries, submitted_by="ada@alpha")
        self.store.submit(job_id, name, spec)

    def start(self, job_id: str, slot: Slot, *, resumed_step: int | None = None, total: int = 2000) -> int:
        job = self.store.assign(job_id, slot, lambda pipe, job: None)
        number = job.attempt
        self.store.claim(job_id, number, worker_pid=4000 + number)
        self.store.note_attempt(job_id, number, EventKind.NOTE, "process started", pid=5000 + number, total_steps=total)
        if resumed_step is not None:
            self.store.note_attempt(
                job_id,
                number,
                EventKind.RESTORED,
                "checkpoint loaded",
                resumed_step=resumed_step,
                resumed_from=f"step-{resumed_step}",
            )
        return number

    def metrics(
        self,
        job_id: str,
        number: int,
        steps: range,
        *,
        total: int = 2000,
        spike: int | None = None,
        nan: tuple[int, ...] = (),
        ago_ms: int = 0,
        names: tuple[str, ...] = ("loss", "accuracy", "lr", "grad_norm"),
    ) -> None:
        """Write batches of 20 steps of curves that look like training."""
        now = now_ms(self.client) - ago_ms
        for first in range(steps.start, steps.stop, 20):
            part = list(range(first, min(first + 20, steps.stop)))
            sequence = 1000 * next(_PIECES)
            series: dict[str, tuple[float | str | None, ...]] = {
                name: tuple(self._value(name, step, spike, nan) for step in part) for name in names
            }
            batch = Batch(
                steps=tuple(part),
                at_ms=tuple(now - (steps.stop - step) * 50 for step in part),
                series=series,
                total=total,
            )
            shipped = streams.ship_batch(self.client, job_id, number, sequence, batch)
            assert shipped is streams.Shipped.ACCEPTED

    def summary(self, job_id: str, number: int, **values: Any) -> None:
        """Write results of a run."""
        batch = Batch(steps=(), at_ms=(), series={}, summary=values)
        assert streams.ship_batch(self.client, job_id, number, 1000 * next(_PIECES), batch) is streams.Shipped.ACCEPTED

    def _value(self, name: str, step: int, spike: int | None, nan: tuple[int, ...]) -> float | str:
        noise = self.random.gauss(0, 1)
        if step in nan and name == "loss":
            return number_or_name(math.nan)
        if step == spike and name == "loss":
            return 9.5
        match name:
            case "accuracy":
                return 1 - 0.9 * math.exp(-step / 500) + 0.01 * noise
            case "lr":
                return 0.1 * (0.5 + 0.5 * math.cos(step / 2000 * math.pi))
            case "grad_norm":
                return abs(2 * math.exp(-step / 800) + 0.15 * noise)
            case _:
                return 2.3 * math.exp(-step / 400) + 0.08 + 0.03 * noise

    def output(self, job_id: str, number: int, text: str) -> None:
        sequence = 1000 * next(_PIECES)
        streams.ship_output(self.client, job_id, number, sequence, text.encode())

    def checkpoint(self, job_id: str, number: int, step: int) -> None:
        ref = CheckpointRef(
            name=f"step-{step:08d}-a{number}",
            step=step,
            attempt=number,
            digest="9f" * 32,
            storage="s1",
            bytes=4_718_592,
        )
        self.store.accept_checkpoint(job_id, number, ref)

    def end(self, job_id: str, number: int, outcome: Outcome, state: JobState, detail: str | None = None) -> None:
        self.store.end_attempt(job_id, number, outcome)
        retry: dict[str, Any] = {"retry_at_ms": now_ms(self.client) + 120_000} if state is JobState.WAITING else {}

        def decide(job: object, now: int) -> Change:
            return self.store.moved(
                self.store.job(job_id), state, now, cause=f"attempt ended: {outcome.reason}", detail=detail, **retry
            )

        self.store.change(job_id, decide)

    def beat(self, role: Role, name: str, host: str, *, ttl_s: float = 600.0, **facts: object) -> None:
        now = now_ms(self.client)
        beat = Beat(role=role, name=name, host=host, pid=700 + len(name), started_at_ms=now - 600_000, at_ms=now)
        beats.publish(self.client, replace(beat, **facts), ttl_s)  # type: ignore[arg-type]  # names of its fields

    def beats(self, step: int = 1430, *, ttl_s: float = 600.0) -> None:
        """One beat of every process."""
        noise = self.random.gauss(0, 1)
        self.beat(Role.LAUNCHER, "alpha-1", "alpha", ttl_s=ttl_s, children={"redis": 11, "supervisor": 12})
        self.beat(Role.SUPERVISOR, "alpha-12", "alpha", ttl_s=ttl_s, leader=True)
        self.beat(Role.AGENT, "alpha", "alpha", ttl_s=ttl_s)
        self.beat(Role.AGENT, "beta", "beta", ttl_s=ttl_s)
        busy = {"slot": "alpha-cpu-0", "job": "digits-a1b2c3", "attempt": 2, "attempt_pid": 5002}
        self.beat(
            Role.WORKER,
            "alpha-cpu-0",
            "alpha",
            ttl_s=ttl_s,
            step=step,
            total=2000,
            step_age_s=0.03,
            steps_per_s=19.6 + noise / 3,
            cpu_pct=171 + 8 * noise,
            rss_mib=412.0,
            **busy,
        )
        self.beat(Role.WORKER, "alpha-cpu-1", "alpha", ttl_s=ttl_s, slot="alpha-cpu-1", cpu_pct=0.4 + abs(noise))
        self.beat(
            Role.WORKER,
            "beta-gpu-0",
            "beta",
            ttl_s=ttl_s,
            slot="beta-gpu-0",
            job="vit-small-d4e5f6",
            attempt=1,
            step=880,
            total=12_000,
            step_age_s=0.1,
            steps_per_s=7.35,
            gpu_util_pct=93 + noise,
            gpu_memory_mib=18_240.0,
            cpu_pct=120.0,
            rss_mib=2048.0,
        )
        self.beat(Role.WORKER, "beta-gpu-1", "beta", ttl_s=ttl_s, slot="beta-gpu-1")

    def everything(self) -> None:
        """Jobs in every state, one killed and resumed, with slots, beats and samples."""
        for slot in SLOTS:
            self.store.register_slot(slot)
        self.finished()
        self.killed_and_resumed()
        self.submit("vit-small-d4e5f6", "vit-small on cifar")
        number = self.start("vit-small-d4e5f6", SLOTS[2], total=12_000)
        self.metrics("vit-small-d4e5f6", number, range(1, 881), total=12_000)
        self.checkpoint("vit-small-d4e5f6", number, 800)
        self.beats()
        self.beat(Role.WORKER, "gamma-cpu-0", "gamma", ttl_s=0.05, slot="gamma-cpu-0")
        self.client.delete(keys.beat(Role.WORKER, "gamma-cpu-0"))  # as if its time had run out already
        sample = {"uuid": GPU, "util_pct": 93.0, "memory_used_mib": 18_240.0, "temperature_c": 67.0, "power_w": 310.0}
        streams.add_sample(self.client, "beta", {"gpus": [sample]})

    def killed_and_resumed(self) -> None:
        job = "digits-a1b2c3"
        self.submit(job, "digits")
        number = self.start(job, SLOTS[0])
        self.metrics(job, number, range(1, 733), spike=400, nan=(610, 611), ago_ms=45_000)
        self.checkpoint(job, number, 700)
        self.output(job, number, "epoch 1 \x1b[32mloss 1.93\x1b[0m\nepoch 2 loss 1.1\n  3%|#\r 50%|###\r100%|####\n")
        killed = Outcome(
            reason=Reason.KILLED,
            detail="SIGKILL from outside",
            signal="SIGKILL",
            first_step=1,
            last_step=732,
            seen_by="worker:alpha-cpu-0",
            noticed_after_ms=4,
        )
        self.end(job, number, killed, JobState.WAITING, "resumes from step 700")
        self.store.resume(job)
        number = self.start(job, SLOTS[0], resumed_step=700)
        self.metrics(job, number, range(701, 1431))
        for step in (800, 900, 1000, 1100, 1200, 1300, 1400):
            self.checkpoint(job, number, step)
        self.output(
            job,
            number,
            "".join(f"step {step} loss {2.3 * math.exp(-step / 400):.4f}\n" for step in range(701, 1431, 10)),
        )

    def hung_and_retried(self) -> str:
        """A job whose first attempt stood still; its second is under way. Not among `everything`."""
        job = "hung-s1t2u3"
        self.submit(job, "loader waits")
        number = self.start(job, SLOTS[1])
        self.metrics(job, number, range(1, 241), ago_ms=150_000)
        hung = Outcome(
            reason=Reason.STALLED,
            detail="no step for 120.1 s (limit 120 s, learned from its median step of 0.051 s)",
            signal="SIGKILL",
            first_step=1,
            last_step=240,
            evidence=HANG,
            seen_by="worker:alpha-cpu-1",
            noticed_after_ms=3,
        )
        self.store.end_attempt(job, number, hung)

        def decide(found: Job, now: int) -> Change:
            inputs = {"failures": 0, "barren": 0, "retries": 4, "poison_after": 3, "progressed": False, "wait_s": 1.3}
            return self.store.moved(
                found,
                JobState.WAITING,
                now,
                cause="retry with backoff",
                detail="starts over",
                inputs=inputs,
                retry_at_ms=now + 1300,
            )

        self.store.change(job, decide)
        self.store.change(
            job, lambda found, now: self.store.moved(found, JobState.QUEUED, now, cause="backoff over", detail=None)
        )
        number = self.start(job, SLOTS[1])
        self.metrics(job, number, range(1, 101))
        return job

    def finished(self) -> None:
        slot = SLOTS[1]
        self.submit("baseline-g7h8j9", "baseline mlp")
        number = self.start("baseline-g7h8j9", slot, total=600)
        self.metrics("baseline-g7h8j9", number, range(1, 601), total=600, ago_ms=600_000)
        done = Outcome(reason=Reason.SUCCEEDED, exit_code=0, first_step=1, last_step=600)
        self.end("baseline-g7h8j9", number, done, JobState.SUCCEEDED)
        self.submit("broken-k1m2n3", "wrong shapes", retries=0)
        number = self.start("broken-k1m2n3", slot)
        self.output("broken-k1m2n3", number, TRACEBACK)
        failure = Failure(type="RuntimeError", message="mat1 and mat2 shapes cannot be multiplied", traceback=TRACEBACK)
        bad = Outcome(
            reason=Reason.USER_ERROR,
            exit_code=1,
            failure=failure,
            detail="RuntimeError: mat1 and mat2 shapes …",
            noticed_after_ms=2,
        )
        self.end(
            "broken-k1m2n3", number, bad, JobState.FAILED, "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
        )
        self.submit("flaky-p4q5r6", "flaky loader")
        number = self.start("flaky-p4q5r6", slot)
        self.metrics("flaky-p4q5r6", number, range(1, 121), ago_ms=5_000)
        self.checkpoint("flaky-p4q5r6", number, 100)
        oom = Outcome(reason=Reason.OOM_HOST, signal="SIGKILL", first_step=1, last_step=120, noticed_after_ms=6)
        self.end("flaky-p4q5r6", number, oom, JobState.WAITING, "resumes from step 100")
        self.submit("paused-s7t8v9", "long sweep 17")
        self.store.pause("paused-s7t8v9")
        self.submit("cancelled-w1x2y3", "typo in the name")
        self.store.cancel("cancelled-w1x2y3")
        self.submit("hostile-z4a5b6", HOSTILE)
        self.submit("queued-c7d8e9", "resnet18, lr 0.3")


def live(url: str, minutes: float) -> None:
    """Write a job's metrics and everybody's beats for a while, for people who look at pages."""
    seed = Seed(url)
    seed.everything()
    seed.hung_and_retried()
    step = 1431
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        seed.beats(step, ttl_s=4.0)
        seed.metrics("digits-a1b2c3", 2, range(step, step + 20))
        seed.output("digits-a1b2c3", 2, f"step {step} of 2000\n")
        step = step + 20 if step < 1980 else step
        time.sleep(1)


if __name__ == "__main__":
    live(sys.argv[1], float(sys.argv[2]))
