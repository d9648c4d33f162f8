"""Questions to a driver that hangs: nobody waits for it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from trackside.testing import wait_until
from trackside_trainer import samples
from trackside_trainer.gputable import ENVIRONMENT
from trackside_trainer.samples import GpuLook, GpuSampler, find_gpus


@pytest.fixture(autouse=True)
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps({"gpus": [{"uuid": "GPU-a"}]}))
    monkeypatch.setenv(ENVIRONMENT, str(path))


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuSampler]:
    monkeypatch.setattr(samples, "_MUTE_S", 3.0)
    found = GpuSampler(0.05)
    yield found
    found.stop()


def test_the_gpus_are_found() -> None:
    assert [gpu["uuid"] for gpu in find_gpus()] == ["GPU-a"]


@pytest.mark.timeout(20)
def test_a_question_whose_process_cannot_be_killed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    look = GpuLook(limit_s=0.0)
    process = look._process
    os.kill(process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(process, "kill", lambda: None)
        assert look.done
    assert look.done
    assert look.gpus is None
    assert samples.left() == {process.pid}
    process.kill()
    wait_until(lambda: not samples.left(), 5, "it is not reaped")


@pytest.mark.timeout(40)
def test_a_sampler_that_says_nothing_is_mute_and_replaced_until_there_is_a_line(sampler: GpuSampler) -> None:
    wait_until(sampler.poll, 10, "no line")
    (pid,) = sampler.pids
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: sampler.poll() or sampler.mute, 10, "nobody notices")
    wait_until(lambda: sampler.mute and not sampler.poll() and pid not in sampler.pids, 5, "it is not ended")
    assert sampler.newest == []
    wait_until(sampler.poll, 15, "none in its place")
    assert not sampler.mute
    assert sampler.pids.isdisjoint({pid})
