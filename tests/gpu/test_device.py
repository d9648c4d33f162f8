"""What only a real GPU shows: memory that somebody holds, memory that is not there, and a context that is dead.

Each test needs an NVIDIA driver and a torch that computes on it, and is skipped without.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trackside.models import JobState, Reason
from trackside.testing import wait_until
from trackside_trainer.samples import find_gpus
from trainer_harness import Trainer, lives, steps_script, supervising

HOLD = """
import sys, torch
held = torch.empty({mib} << 20, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("holds", flush=True)
sys.stdin.read()
"""
FILL = """
import torch
kept = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda") for _ in range(10_000)]
"""
ASSERT = """
import os, torch, trackside
run = trackside.init()
print("pid", os.getpid(), flush=True)
x = torch.arange(4, device="cuda")
if run.attempt == 1:
    x[torch.tensor([7], device="cuda")] = 1  # an index that is not there: an assertion on the device
torch.cuda.synchronize()
print("sum", int(x.sum()), flush=True)
"""
HELD_MIB = 4096
BACK_S = 10.0


def device() -> dict[str, Any] | None:
    """The first GPU, where there is one that torch can use."""
    found = find_gpus()
    if not found:
        return None
    import torch

    return found[0] if torch.cuda.is_available() else None


pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> dict[str, Any]:
    found = device()
    if found is None:
        pytest.skip("needs an NVIDIA GPU, its driver, and a torch with CUDA: see `nvidia-smi`")
    return found


@pytest.fixture
def trainer(fresh_home: Path, bus_urls: Mapping[str, str]) -> Iterator[Trainer]:
    settings: dict[str, float | str] = {"sample_s": 0.5, "gpu_free_wait_s": 3.0, "profile": "default"}
    with Trainer(fresh_home, bus_urls, slots="gpu:1", settings=settings) as running:
        wait_until(lambda: running.slot().blocked is None, 20, "the slot stays blocked: is the GPU idle?")
        yield running


@contextmanager
def holder(mib: int) -> Iterator[subprocess.Popen[str]]:
    """A process that is none of ours and has memory on the GPU."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(mib=mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_f45_a_slot_whose_memory_somebody_holds_is_blocked_and_opens_after_that_process_is_killed(
    trainer: Trainer,
) -> None:
    with holder(HELD_MIB):
        wait_until(lambda: "MiB" in (trainer.slot().blocked or ""), 10, f"not blocked: {trainer.slot()}")
        outcome = trainer.ended(trainer.assign("print('started')"), 60)
        assert outcome.reason is Reason.PREEMPTED
        wait_until(lambda: "quarantined" in (trainer.slot().blocked or ""), 10, f"{trainer.slot()}")
    wait_until(lambda: trainer.slot().blocked is None, BACK_S, f"its memory is free: {trainer.slot()}")
    assert trainer.ended(trainer.assign("print('started')"), 60).reason is Reason.SUCCEEDED


def test_a_killed_training_s_memory_is_back_before_the_next_job_starts(trainer: Trainer) -> None:
    big = HOLD.format(mib=HELD_MIB).replace("sys.stdin.read()", steps_script(100_000, 0.01))
    job = trainer.assign(big)
    pid = trainer.running(job)
    trainer.store.cancel(job.id)
    assert trainer.ended(job, 60).reason is Reason.CANCELLED
    assert not lives(pid)
    wait_until(lambda: trainer.slot().blocked is None, BACK_S, f"its memory is not back: {trainer.slot()}")
    following = trainer.assign(HOLD.format(mib=HELD_MIB).replace("sys.stdin.read()", ""))
    assert trainer.ended(following, 60).reason is Reason.SUCCEEDED


def test_f42_a_job_that_fills_the_gpu_fails_at_once(trainer: Trainer, bus_urls: Mapping[str, str]) -> None:
    with supervising(bus_urls["supervisor"], trainer.home):
        job_id = trainer.submit(FILL, device="gpu")
        wait_until(lambda: trainer.store.job(job_id).state.terminal, 120, "it did not end")
    job = trainer.store.job(job_id)
    assert (job.state, job.reason, job.attempt) == (JobState.FAILED, Reason.OOM_GPU, 1)


def test_f44_an_assertion_on_the_device_ends_its_process_and_the_next_one_computes(
    trainer: Trainer, bus_urls: Mapping[str, str]
) -> None:
    with supervising(bus_urls["supervisor"], trainer.home):
        job_id = trainer.submit(ASSERT, device="gpu")
        wait_until(lambda: trainer.store.job(job_id).state.terminal, 120, "it did not end")
    job = trainer.store.job(job_id)
    outcomes = [attempt.outcome for attempt in trainer.store.attempts(job)]
    assert [outcome.reason for outcome in outcomes if outcome] == [Reason.CUDA_ERROR, Reason.SUCCEEDED]
    assert "sum 6" in trainer.output(job)
    first, second = trainer.pids_in_output(job, 2)
    assert first != second
