"""What the NVIDIA driver tells, and what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trackside_trainer.gpus import XidWatch, sample
from trackside_trainer.gputable import ENVIRONMENT, Table


class NvmlError(Exception):
    pass


def no_answer(*_: Any) -> Any:
    raise NvmlError("Not Supported")


def driver(**changes: Any) -> Any:
    answers: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVML_TEMPERATURE_GPU": 0,
        "NVML_CLOCK_SM": 1,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda at: f"handle{at}",
        "nvmlDeviceGetUUID": lambda _: b"GPU-1234",
        "nvmlDeviceGetName": lambda _: "NVIDIA H100",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 << 30, used=1 << 30),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97, memory=40),
        "nvmlDeviceGetTemperature": lambda _, kind: 61 + kind,
        "nvmlDeviceGetPowerUsage": lambda _: 345_600,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetClockInfo": lambda _, kind: 1979 + kind - 1,
        "nvmlDeviceGetCurrentClocksEventReasons": no_answer,
    }
    return SimpleNamespace(**{**answers, **changes})


def test_a_device_is_told_with_units_and_unknown_fields_are_none() -> None:
    assert sample(driver()) == [
        {
            "uuid": "GPU-1234", "name": "NVIDIA H100", "memory_total_mib": 81920, "memory_used_mib": 1024,
            "util_pct": 97, "memory_util_pct": 40, "temperature_c": 61, "power_w": 345.6, "power_limit_w": 700.0,
            "sm_clock_mhz": 1979, "clock_event_reasons": None, "ecc_uncorrected": None,
            "processes": None, "xids": None,
        }
    ]  # fmt: skip


def test_no_driver_is_no_gpus() -> None:
    assert sample(None) == []
    assert sample(driver(nvmlDeviceGetCount=no_answer)) == []


def test_a_device_that_is_lost_leaves_the_others() -> None:
    def handle(at: int) -> str:
        if at == 0:
            raise NvmlError("GPU is lost")
        return "handle"

    found = sample(driver(nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=handle))
    assert [gpu["uuid"] for gpu in found] == ["GPU-1234"]


def test_a_device_that_knows_nothing_is_all_none() -> None:
    known = ("nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex")
    mute = {name: no_answer for name in vars(driver()) if name.startswith("nvmlDeviceGet") and name not in known}
    assert set(sample(driver(**mute))[0].values()) == {None}


def test_discovery_in_a_process_of_its_own_prints_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trackside_trainer.gpus", "--once"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), list)


def row(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_who_has_memory_is_listed_and_who_draws_and_computes_computes() -> None:
    found = sample(
        driver(
            nvmlDeviceGetComputeRunningProcesses=lambda _: [row(7, 3 << 30), row(8, None)],
            nvmlDeviceGetGraphicsRunningProcesses=lambda _: [row(9, 1 << 20), row(7, 3 << 30)],
        )
    )[0]["processes"]
    assert sorted((each["pid"], each["used_mib"], each["kind"]) for each in found) == [
        (7, 3072, "compute"), (8, None, "compute"), (9, 1, "graphics"),
    ]  # fmt: skip


def table(path: Path, *gpus: dict[str, Any]) -> Table:
    path.write_text(json.dumps({"gpus": gpus}))
    return Table(path)


def test_an_error_that_comes_while_it_is_watched_is_told_once_and_outlives_its_gpu(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    nvml: Any = table(path, {"uuid": "GPU-a", "xids": [31]}, {"uuid": "GPU-b", "xids": []}, {"uuid": "GPU-c"})
    watch = XidWatch(nvml)
    assert [gpu["xids"] for gpu in sample(nvml, watch)] == [[], [], None], "what was before is nobody's news"
    assert not watch.poll()
    table(path, {"uuid": "GPU-a", "xids": [31]}, {"uuid": "GPU-b", "xids": [13, 79]}, {"uuid": "GPU-c"})
    assert watch.poll()
    assert not watch.poll()
    first, second, _ = sample(nvml, watch)
    assert first["xids"] == []
    assert [entry["xid"] for entry in second["xids"]] == [13, 79]
    table(path, {"uuid": "GPU-a", "xids": [31]}, {"uuid": "GPU-b", "xids": [13, 79], "lost": True})
    assert sample(nvml, watch)[1] == {"uuid": "GPU-b", "lost": True, "xids": second["xids"]}


def test_a_table_of_devices_stands_for_the_driver_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "gpus.json"
    table(path, {"uuid": "GPU-a", "total_mib": 100, "used_mib": 7, "processes": [{"pid": 5}]})
    done = subprocess.run(
        [sys.executable, "-m", "trackside_trainer.gpus", "--once"], capture_output=True, text=True, timeout=60,
        env={**os.environ, ENVIRONMENT: str(path)},
    )  # fmt: skip
    (gpu,) = json.loads(done.stdout)
    assert (gpu["uuid"], gpu["memory_total_mib"], gpu["memory_used_mib"], gpu["name"]) == ("GPU-a", 100, 7, None)
    assert gpu["processes"] == [{"pid": 5, "used_mib": None, "kind": "compute"}]


def test_the_real_library_has_the_names_that_are_asked_for() -> None:
    pynvml: Any = pytest.importorskip("pynvml")
    for name in (*(name for name in vars(Table) if name.startswith("nvml")), "NVMLError", "NVML_CLOCK_SM"):
        assert hasattr(pynvml, name), name
    assert {"eventType", "eventData"} <= {field[0] for field in pynvml.c_nvmlEventData_t._fields_}
    assert {"pid", "usedGpuMemory"} <= {field[0] for field in pynvml.c_nvmlProcessInfo_t._fields_}
    assert pynvml.nvmlEventTypeXidCriticalError == Table.nvmlEventTypeXidCriticalError
