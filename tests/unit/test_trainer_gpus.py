"""What the NVIDIA driver tells, and what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from trackside_trainer.gpus import sample


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
