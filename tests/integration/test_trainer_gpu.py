"""GPU slots with a table in the place of a driver: nothing is started on a GPU that is not free, whole and there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trackside.bus import streams
from trackside.models import Event, EventKind, Job, JobState, Reason, Slot
from trackside.processes import children
from trackside.testing import wait_until
from trackside.wholefile import write_whole
from trainer_harness import Trainer, lives, steps_script, supervised, supervising

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
TOTAL_MIB, IDLE_MIB = 81_559, 600
WHERE = """
import os
print("sees", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
"""
NOTICED_S = 20.0


@dataclass
class Gpus:
    """The table: what the driver shows from the next sample on."""

    path: Path
    order: list[str] = field(default_factory=lambda: ["GPU-a", "GPU-b"])
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def show(self, uuid: str | None = None, **facts: Any) -> None:
        if uuid is not None:
            self.facts[uuid] = {**self.facts.get(uuid, {}), **facts}
        idle = {"total_mib": TOTAL_MIB, "used_mib": IDLE_MIB, "processes": [], "xids": [], "clock_event_reasons": 0}
        gpus = [{"uuid": each, **idle, **self.facts.get(each, {})} for each in self.order]
        write_whole(self.path, json.dumps({"gpus": gpus}).encode())

    def settings(self, *, gpu_free_wait_s: float = 1.0) -> dict[str, float | str]:
        return {"sample_s": 0.1, "gpu_free_wait_s": gpu_free_wait_s, "gpu_table": str(self.path)}

    def hold(self, uuid: str, pid: int, used_mib: int = 20_000) -> None:
        """Another process takes memory."""
        self.show(uuid, used_mib=IDLE_MIB + used_mib, processes=[{"pid": pid, "used_mib": used_mib}])

    def free(self, uuid: str) -> None:
        self.show(uuid, used_mib=IDLE_MIB, processes=[])


@pytest.fixture
def gpus(tmp_path: Path) -> Gpus:
    found = Gpus(tmp_path / "gpus.json")
    found.show()
    return found


@pytest.fixture
def trainer(fresh_home: Path, bus_urls: Mapping[str, str], gpus: Gpus) -> Iterator[Trainer]:
    with Trainer(fresh_home, bus_urls, slots="gpu", settings=gpus.settings()) as running:
        opened(running)
        yield running


@pytest.fixture
def patient(fresh_home: Path, bus_urls: Mapping[str, str], gpus: Gpus) -> Iterator[Trainer]:
    """One that waits for a GPU longer than a test takes."""
    with Trainer(fresh_home, bus_urls, slots="gpu", settings=gpus.settings(gpu_free_wait_s=60.0)) as running:
        opened(running)
        yield running


def opened(trainer: Trainer) -> None:
    wait_until(lambda: all(slot.blocked is None for slot in trainer.store.slots()), 20, "the slots stay blocked")


def becomes(trainer: Trainer, words: str | None, *, at: int = 0, timeout_s: float = NOTICED_S) -> Slot:
    """Wait until the slot is blocked with these words, or open."""

    def there() -> Slot | None:
        slot = trainer.slot(at)
        right = slot.blocked is None if words is None else words in (slot.blocked or "")
        return slot if right else None

    found = wait_until(there, timeout_s, f"no {words!r}: {trainer.slot(at)}")
    assert found is not None
    return found


def told(trainer: Trainer, cause: str) -> list[Event]:
    events = [event for _, event in streams.newest_events(trainer.client, 500) if event is not None]
    return [event for event in events if event.kind is EventKind.SLOT and event.cause == cause]


def sees(trainer: Trainer, slot: int) -> str:
    job = trainer.assign(WHERE, slot=slot)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.SUCCEEDED, outcome.detail
    return trainer.output(job).split()[-1]


def test_a_job_sees_its_slot_s_gpu_alone_whatever_the_order_of_the_gpus(trainer: Trainer, gpus: Gpus) -> None:
    assert [sees(trainer, 0), sees(trainer, 1)] == ["GPU-a", "GPU-b"]
    gpus.order = ["GPU-new", "GPU-b", "GPU-a"]
    gpus.show()
    assert [sees(trainer, 0), sees(trainer, 1)] == ["GPU-a", "GPU-b"]
    trainer.stop()
    trainer.start()
    opened(trainer)
    assert [(slot.id, slot.gpu_uuid) for slot in trainer.store.slots()] == [
        ("box-gpu0", "GPU-a"), ("box-gpu1", "GPU-b"), ("box-gpu2", "GPU-new"),
    ]  # fmt: skip
    assert sees(trainer, 0) == "GPU-a"


def test_a_gpu_that_vanishes_takes_no_job_and_names_why_its_attempt_died(trainer: Trainer, gpus: Gpus) -> None:
    job = trainer.assign(steps_script(10_000, 0.01) + "\nraise SystemExit(3)\n")
    pid = trainer.running(job)
    gpus.order = ["GPU-b"]
    gpus.show()
    slot = becomes(trainer, "GPU-a is gone")
    assert slot.gpu_uuid == "GPU-a"
    assert trainer.running(job, step=20) == pid, "what runs is left alone"
    os.kill(pid, 9)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.GPU_LOST
    assert "GPU-a" in (outcome.detail or "")
    assert [event.data["gpu"] for event in told(trainer, "gpu gone")] == ["GPU-a"]

    refused = trainer.ended(trainer.give(trainer.submit(WHERE)))
    assert refused.reason is Reason.PREEMPTED
    assert "GPU-a is gone" in (refused.detail or "")
    gpus.order = ["GPU-a", "GPU-b"]
    gpus.show()
    becomes(trainer, None)
    assert sees(trainer, 0) == "GPU-a"


def test_a_gpu_in_use_by_somebody_else_is_blocked_then_quarantined_and_opened_when_it_is_free(
    trainer: Trainer, gpus: Gpus
) -> None:
    gpus.hold("GPU-a", 4242)
    becomes(trainer, "process 4242 holds 20000 MiB")
    becomes(trainer, "quarantined")
    (event,) = told(trainer, "gpu not free")
    assert (event.data["pids"], event.data["slot"]) == ([4242], "box-gpu0")
    assert event.data["waited_s"] >= 1.0
    assert trainer.slot(1).blocked is None
    gpus.free("GPU-a")
    becomes(trainer, None)
    assert len(told(trainer, "gpu free again")) == 1
    assert sees(trainer, 0) == "GPU-a"


def test_an_attempt_is_handed_back_rather_than_started_into_memory_that_is_not_there(
    trainer: Trainer, gpus: Gpus
) -> None:
    gpus.hold("GPU-a", 4242)
    job = trainer.assign(WHERE)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.PREEMPTED
    assert "process 4242 holds 20000 MiB" in (outcome.detail or "")
    assert trainer.output(job) == "", "it was started into memory that is not there"


def claimed(trainer: Trainer) -> Job:
    """A job that its worker has taken, and does not start while its GPU is held."""
    job = trainer.assign(WHERE)
    wait_until(lambda: (beat := trainer.beat("box-gpu0")) and beat.job == job.id, 10, "it was not claimed")
    return job


def test_an_attempt_that_waits_for_its_gpu_can_be_cancelled_or_paused_and_starts_once_it_is_free(
    patient: Trainer, gpus: Gpus
) -> None:
    gpus.hold("GPU-a", 4242)
    for ask, reason in ((patient.store.cancel, Reason.CANCELLED), (patient.store.pause, Reason.PAUSED)):
        job = claimed(patient)
        ask(job.id)
        outcome = patient.ended(job)
        assert (outcome.reason, outcome.detail) == (reason, "stopped before it started")
    waiting = claimed(patient)
    gpus.free("GPU-a")
    assert patient.ended(waiting).reason is Reason.SUCCEEDED
    assert "sees GPU-a" in patient.output(waiting)


def test_memory_of_a_job_that_ended_blocks_its_slot_until_it_is_back(patient: Trainer, gpus: Gpus) -> None:
    trainer = patient
    job = trainer.assign(steps_script(10_000, 0.01))
    pid = trainer.running(job)
    gpus.hold("GPU-a", pid)
    trainer.running(job, step=60)  # several samples see the job's own memory
    assert trainer.slot().blocked is None
    os.kill(pid, 9)
    trainer.ended(job)
    becomes(trainer, f"process {pid} holds")
    gpus.free("GPU-a")
    becomes(trainer, None)
    assert told(trainer, "gpu not free") == [], "it was back in time"


def test_an_error_of_the_hardware_takes_its_slot_out_of_service_until_somebody_puts_it_back(
    fresh_home: Path, bus_urls: Mapping[str, str], gpus: Gpus
) -> None:
    xids = {"GPU-a": 79, "GPU-b": 48, "GPU-c": 95, "GPU-d": 64, "GPU-e": 31}
    gpus.order = list(xids)
    gpus.show()
    with Trainer(fresh_home, bus_urls, slots="gpu", settings=gpus.settings()) as trainer:
        opened(trainer)
        for uuid, xid in xids.items():
            gpus.show(uuid, xids=[13, xid])
        drained = wait_until(
            lambda: found if len(found := [each for each in trainer.store.slots() if each.cordoned]) == 4 else None,
            NOTICED_S, "they were not drained",
        )  # fmt: skip
        assert drained is not None
        assert [f"Xid {xids[each.gpu_uuid or '']}:" in (each.cordon_reason or "") for each in drained] == [True] * 4
        events = {event.data["slot"]: event.data["xid"] for event in told(trainer, "gpu broken")}
        assert events == {each.id: xids[each.gpu_uuid or ""] for each in drained}
        trainer.stop()
        trainer.start()
        opened(trainer)
        again = trainer.slot()
        assert (again.cordoned, again.cordon_reason) == (True, drained[0].cordon_reason)
        trainer.store.cordon("box-gpu0", cordoned=False)
        assert (trainer.slot().cordoned, trainer.slot().cordon_reason) == (False, None)


def test_an_error_of_the_application_is_an_event_and_takes_nothing_out_of_service(trainer: Trainer, gpus: Gpus) -> None:
    gpus.show("GPU-a", xids=[13, 31, 43, 94])
    wait_until(lambda: len(told(trainer, "gpu error")) == 4, NOTICED_S, "it was not told")
    assert not trainer.slot().cordoned
    assert sees(trainer, 0) == "GPU-a"


def test_heat_is_told_and_restarts_nothing(trainer: Trainer, gpus: Gpus) -> None:
    job = trainer.assign(steps_script(10_000, 0.01))
    pid = trainer.running(job)
    gpus.show("GPU-a", clock_event_reasons=0x40 | 0x4)
    wait_until(lambda: trainer.slot().throttled, NOTICED_S, "no badge")
    assert "heat" in (trainer.slot().throttled or "")
    assert [event.data["slot"] for event in told(trainer, "gpu throttled")] == ["box-gpu0"]
    assert trainer.running(job, step=60) == pid
    assert trainer.slot().blocked is None
    os.kill(pid, 9)
    trainer.ended(job)


def test_a_driver_that_hangs_blocks_its_slots_and_is_asked_anew(trainer: Trainer) -> None:
    (sampler,) = [
        pid
        for pid in children(trainer.process.pid if trainer.process else 0)
        if b"trackside_trainer.gpus" in command_line(pid)
    ]
    os.kill(sampler, signal.SIGSTOP)
    wait_until(lambda: len(told(trainer, "gpu driver does not answer")) == 2, 30, "nobody notices")
    wait_until(lambda: len(told(trainer, "gpu driver answers again")) == 2, 30, "it is not asked anew")
    becomes(trainer, None)
    assert not lives(sampler)


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_job_waits_in_the_queue_until_a_gpu_is_free(
    trainer: Trainer, gpus: Gpus, bus_urls: Mapping[str, str]
) -> None:
    for uuid in ("GPU-a", "GPU-b"):
        gpus.hold(uuid, 4242)
    becomes(trainer, "4242", at=0)
    becomes(trainer, "4242", at=1)
    with supervising(bus_urls["supervisor"], trainer.home):
        job_id = trainer.submit(WHERE)
        supervised(trainer, rounds=2)
        assert trainer.store.job(job_id).attempt == 0
        gpus.free("GPU-b")
        wait_until(lambda: trainer.store.job(job_id).state.terminal, 20, "it did not run")
        job = trainer.store.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert "sees GPU-b" in trainer.output(job)


RAISES = """
import os, pathlib, torch, trackside
run = trackside.init()
print("pid", os.getpid(), flush=True)
if run.attempt == 1:
    raise {error}
"""


def test_after_a_sticky_cuda_error_the_job_goes_on_in_another_process(
    trainer: Trainer, bus_urls: Mapping[str, str]
) -> None:
    error = "torch.AcceleratorError('CUDA error: device-side assert triggered')"
    with supervising(bus_urls["supervisor"], trainer.home):
        job_id = trainer.submit(RAISES.format(error=error))
        wait_until(lambda: trainer.store.job(job_id).state.terminal, 30, "it did not end")
        job = trainer.store.job(job_id)
    assert reasons(trainer, job) == [Reason.CUDA_ERROR, Reason.SUCCEEDED]
    first, second = trainer.pids_in_output(job, 2)
    assert first != second
    assert not lives(first)


def test_a_job_that_does_not_fit_on_its_gpu_is_not_started_again_unchanged(
    trainer: Trainer, bus_urls: Mapping[str, str]
) -> None:
    with supervising(bus_urls["supervisor"], trainer.home):
        job_id = trainer.submit(RAISES.format(error="torch.OutOfMemoryError('CUDA out of memory')"))
        wait_until(lambda: trainer.store.job(job_id).state.terminal, 30, "it did not end")
        job = trainer.store.job(job_id)
    assert job.state is JobState.FAILED
    assert reasons(trainer, job) == [Reason.OOM_GPU]


def reasons(trainer: Trainer, job: Job) -> list[Reason]:
    return [attempt.outcome.reason for attempt in trainer.store.attempts(job) if attempt.outcome is not None]


def test_an_agent_that_starts_while_its_driver_is_away_keeps_its_gpu_slots_and_opens_them_when_it_is_back(
    fresh_home: Path, bus_urls: Mapping[str, str], gpus: Gpus
) -> None:
    with Trainer(fresh_home, bus_urls, slots="auto", settings=gpus.settings()) as trainer:
        opened(trainer)
        before = trainer.store.slots()
        trainer.kill_agent()
        write_whole(gpus.path, json.dumps({"answers": False}).encode())
        trainer.start()
        becomes(trainer, "does not show")
        becomes(trainer, "does not show", at=1)
        gpus.show()
        opened(trainer)
        after = trainer.store.slots()
        assert [(slot.id, slot.gpu_uuid, slot.gpu_memory_mib) for slot in after] == [
            (slot.id, slot.gpu_uuid, slot.gpu_memory_mib) for slot in before
        ]
        assert len(after) == 2
