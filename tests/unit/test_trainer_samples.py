"""Questions to a driver that hangs: nobody waits for it."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trackside.testing import wait_until
from trackside.wholefile import write_whole
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
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    with monkeypatch.context() as patched:
        patched.setattr(process, "kill", lambda: None)
        assert look.done
    assert look.done
    assert look.gpus is None
    assert samples.left() == {process.pid}
    process.kill()
    wait_until(lambda: not samples.left(), 20, "it is not reaped")


@pytest.mark.timeout(40)
def test_a_sampler_that_says_nothing_is_mute_and_replaced_until_there_is_a_line(sampler: GpuSampler) -> None:
    wait_until(sampler.poll, 10, "no line")
    (pid,) = sampler.pids
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: sampler.poll() or sampler.mute, 10, "nobody notices")
    wait_until(lambda: sampler.mute and not sampler.poll() and pid not in sampler.pids, 20, "it is not ended")
    assert sampler.newest == []
    wait_until(sampler.poll, 15, "none in its place")
    assert not sampler.mute
    assert sampler.pids.isdisjoint({pid})


@pytest.mark.timeout(40)
def test_a_driver_that_comes_up_late_is_seen_by_the_process_that_asked_too_early(
    sampler: GpuSampler, tmp_path: Path
) -> None:
    table = tmp_path / "gpus.json"
    table.write_text(json.dumps({"answers": False, "gpus": [{"uuid": "GPU-a"}]}))
    wait_until(sampler.poll, 10, "no line")
    assert sampler.newest == []
    asked = sampler.pids
    write_whole(table, json.dumps({"gpus": [{"uuid": "GPU-a"}]}).encode())  # it is read all the time
    wait_until(lambda: sampler.poll() and sampler.newest, 20, "the driver is there, and nobody looks")
    assert sampler.pids == asked


@pytest.mark.timeout(60)
def test_a_driver_that_does_not_come_up_is_asked_by_a_new_process_now_and_then(
    sampler: GpuSampler, tmp_path: Path
) -> None:
    (tmp_path / "gpus.json").write_text(json.dumps({"answers": False}))
    wait_until(sampler.poll, 10, "no line")
    asked = sampler.pids
    wait_until(lambda: not sampler.poll() and sampler.pids and sampler.pids.isdisjoint(asked), 20, "it is never left")


@contextmanager
def no_process() -> Iterator[None]:
    """Not a single file may be opened here, so no process can be started with a pipe either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_question_that_no_process_can_be_started_for_has_no_answer() -> None:
    with no_process():
        look = GpuLook(limit_s=10)
        assert find_gpus() == []
    assert look.done
    assert look.gpus is None


@pytest.mark.timeout(40)
def test_a_sampler_that_gets_no_process_tries_again(sampler: GpuSampler) -> None:
    with no_process():
        assert not sampler.poll()
        assert not sampler.poll()
    assert sampler.pids == set()
    wait_until(sampler.poll, 20, "it gives up")
    assert [gpu["uuid"] for gpu in sampler.newest] == ["GPU-a"]
