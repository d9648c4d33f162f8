"""What `--slots` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trackside import storage
from trackside.errors import ConfigurationError
from trackside.models import Slot
from trackside_trainer.slotfiles import ProcessLock, TakenAttempt, all_taken, taken_path
from trackside_trainer.slots import numbered, parse

GPUS: list[dict[str, Any]] = [
    {"uuid": "GPU-aaaa", "name": "NVIDIA H100", "memory_total_mib": 81559},
    {"uuid": "GPU-bbbb", "name": "NVIDIA H100", "memory_total_mib": None},
]


def slots(text: str, gpus: list[dict[str, Any]] | None = None, cores: int = 8) -> list[Slot]:
    return parse(text, host="box", storage="s1", find_gpus=lambda: gpus or [], cores=cores)


def test_cpu_slots_share_the_cores() -> None:
    found = slots("cpu:3")
    assert [(slot.id, slot.kind, slot.threads, slot.storage) for slot in found] == [
        ("box-cpu0", "cpu", 2, "s1"), ("box-cpu1", "cpu", 2, "s1"), ("box-cpu2", "cpu", 2, "s1"),
    ]  # fmt: skip
    assert [slot.threads for slot in slots("cpu:4", cores=2)] == [1, 1, 1, 1]


def test_auto_means_gpus_where_there_are_any_and_two_cpu_slots_elsewhere() -> None:
    assert [slot.id for slot in slots("auto")] == ["box-cpu0", "box-cpu1"]
    assert [slot.id for slot in slots("auto", cores=1)] == ["box-cpu0"]
    assert [slot.id for slot in slots("auto", GPUS)] == ["box-gpu0", "box-gpu1"]


def test_gpu_slots_are_pinned_by_uuid() -> None:
    found = slots("gpu:1", GPUS)
    assert [(slot.gpu_uuid, slot.gpu_name, slot.gpu_memory_mib) for slot in found] == [
        ("GPU-aaaa", "NVIDIA H100", 81559)
    ]
    assert len(slots("GPU", GPUS)) == 2


def test_a_gpu_keeps_its_number_whatever_the_driver_s_order_and_a_new_one_gets_another(tmp_path: Path) -> None:
    def ids(*uuids: str) -> dict[str, str | None]:
        found = numbered(tmp_path, [{"uuid": uuid} for uuid in uuids])
        return {slot.id: slot.gpu_uuid for slot in slots("gpu", list(map(dict, found)))}

    assert ids("GPU-a", "GPU-b") == {"box-gpu0": "GPU-a", "box-gpu1": "GPU-b"}
    assert ids("GPU-b", "GPU-c", "GPU-a") == {"box-gpu0": "GPU-a", "box-gpu1": "GPU-b", "box-gpu2": "GPU-c"}
    listed = numbered(tmp_path, [{"uuid": "GPU-b"}, {"uuid": "GPU-a"}])
    assert [slot.gpu_uuid for slot in slots("gpu:1", list(map(dict, listed)))] == ["GPU-a"]
    assert ids("GPU-b") == {"box-gpu1": "GPU-b"}
    (tmp_path / "run" / "gpus.json").write_text("[torn")
    assert ids("GPU-b") == {"box-gpu0": "GPU-b"}


def test_gpus_that_a_driver_does_not_show_just_now_keep_their_slots_and_no_cpu_takes_their_jobs(tmp_path: Path) -> None:
    def ids(asked: str, *uuids: str) -> list[str]:
        return [slot.id for slot in slots(asked, list(map(dict, numbered(tmp_path, [{"uuid": u} for u in uuids]))))]

    assert ids("auto") == ["box-cpu0", "box-cpu1"]
    assert ids("auto", "GPU-a", "GPU-b") == ["box-gpu0", "box-gpu1"]
    assert ids("auto", "GPU-b") == ["box-gpu1"]
    assert ids("auto") == ids("gpu") == ["box-gpu1"]

    path = tmp_path / "run" / "gpus-shown.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another one"}))
    assert ids("auto") == ["box-cpu0", "box-cpu1"], "its GPUs may have been taken out since"
    path.write_text("[torn")
    assert ids("auto") == ["box-cpu0", "box-cpu1"]


def test_a_disk_that_does_not_take_which_gpus_there_are_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    gpus = [{"uuid": "GPU-a", "name": "A"}]
    assert numbered(tmp_path, gpus) == [{**gpus[0], "number": 0}]
    shown = tmp_path / "run" / "gpus-shown.json"
    shown.unlink()
    shown.mkdir()  # stands for a full disk: the file that is there is not replaced
    assert numbered(tmp_path, gpus) == [{**gpus[0], "number": 0}]
    assert sorted(path.name for path in shown.parent.iterdir()) == ["gpus-shown.json", "gpus.json"], "a file beside"


def test_what_a_dead_writer_left_on_a_disk_that_removes_nothing_ends_no_agent(tmp_path: Path) -> None:
    (tmp_path / "run" / "taken" / f".rq.1.json.{2**22 + 1}").mkdir(parents=True)  # no unlink removes a folder
    assert all_taken(tmp_path) == []


def test_a_gpu_slot_begins_as_blocked_until_its_gpu_was_looked_at() -> None:
    assert all(slot.blocked for slot in slots("gpu", GPUS))
    assert not any(slot.blocked for slot in slots("cpu:2"))


@pytest.mark.parametrize(
    "text", ["", "cpu", "cpu:0", "cpu:x", "cpu:-1", "cpu:257", "tpu:1", "auto:2", "gpu:x", "gpu:0", "gpu:"]
)
def test_what_cannot_be_meant_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give auto, cpu:N with N from 1 to 256, gpu, or gpu:N"):
        slots(text, GPUS)


def test_all_that_may_be_said() -> None:
    assert len(slots("cpu:256")) == 256
    assert len(slots("gpu:2", GPUS)) == 2


@pytest.mark.parametrize("text", ["gpu", "gpu:1"])
def test_gpus_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="nvidia-smi"):
        slots(text)


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"has 2 GPU\(s\)"):
        slots("gpu:3", GPUS)


def test_a_data_folder_keeps_its_identity(tmp_path: Path) -> None:
    assert storage.identity(tmp_path / "a") == storage.identity(tmp_path / "a")
    assert storage.identity(tmp_path / "a") != storage.identity(tmp_path / "b")


def test_a_lock_is_held_once_and_says_by_whom(tmp_path: Path) -> None:
    first, second = ProcessLock(tmp_path / "run" / "a.lock"), ProcessLock(tmp_path / "run" / "a.lock")
    assert first.take()
    assert not second.take()
    assert second.holder() == first.holder()
    assert second.holder() is not None
    first.release()
    assert second.holder() is None
    assert second.take()
    second.release()


def test_a_lock_file_of_a_dead_process_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text("1 1\n")  # the pid lives, but it started at another time
    assert ProcessLock(path).holder() is None


def test_taken_attempts_are_found_again_and_rubbish_is_passed_over(tmp_path: Path) -> None:
    path = taken_path(tmp_path, "job-abc", 2, 1)
    taken = TakenAttempt(slot="s", job="job-abc", attempt=2, attempt_dir="/x", worker_pid=1, worker_started=2)
    taken.write(path)
    path.with_name("rubbish.json").write_text("{")
    cut_short = path.with_name(f".{path.name}.4194999")  # no pid is as large
    cut_short.write_text("{")
    assert all_taken(tmp_path) == [(path, taken)]
    assert not cut_short.exists()
