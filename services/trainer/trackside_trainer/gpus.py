"""What the NVIDIA driver tells, asked in a process of its own: the agent forks, and must never have loaded a driver.

    python -m trackside_trainer.gpus --once            one JSON line, then exit
    python -m trackside_trainer.gpus --every 2.0       one JSON line each time

A line is a list with one object per GPU. No driver, no library or no GPU is an empty list and no error; a field that
the device does not know is null.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
_MIB: Final = 1024 * 1024


class Nvml(Protocol):
    """What is used of the `pynvml` module."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int
    NVML_CLOCK_SM: int

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


def load() -> Nvml | None:
    """The library, initialised; None where there is no driver to talk to."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml  # type: ignore[no-any-return]  # the module has no annotations


def sample(nvml: Nvml | None) -> list[dict[str, Any]]:
    """One object per GPU, in the driver's order."""
    if nvml is None:
        return []
    count = _asked(nvml, nvml.nvmlDeviceGetCount) or 0
    handles = [_asked(nvml, partial(nvml.nvmlDeviceGetHandleByIndex, at)) for at in range(count)]
    return [_device(nvml, handle) for handle in handles if handle is not None]


def _device(nvml: Nvml, handle: Any) -> dict[str, Any]:
    def ask(name: str, *more: Any) -> Any:
        return _asked(nvml, lambda: getattr(nvml, name)(handle, *more))

    memory = ask("nvmlDeviceGetMemoryInfo")
    use = ask("nvmlDeviceGetUtilizationRates")
    watts, limit_watts = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetEnforcedPowerLimit")
    return {
        "uuid": _text(ask("nvmlDeviceGetUUID")),
        "name": _text(ask("nvmlDeviceGetName")),
        "memory_total_mib": None if memory is None else memory.total // _MIB,
        "memory_used_mib": None if memory is None else memory.used // _MIB,
        "util_pct": None if use is None else use.gpu,
        "memory_util_pct": None if use is None else use.memory,
        "temperature_c": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "power_w": None if watts is None else watts / 1000,
        "power_limit_w": None if limit_watts is None else limit_watts / 1000,
        "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "clock_event_reasons": ask("nvmlDeviceGetCurrentClocksEventReasons"),
        "ecc_uncorrected": ask("nvmlDeviceGetTotalEccErrors", 1, 0),
    }


def _asked(nvml: Nvml, act: Callable[[], T]) -> T | None:
    """An answer, or None where the device, the driver or this version of the library has none."""
    try:
        return act()
    except (nvml.NVMLError, AttributeError, TypeError):
        return None


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def main(argv: list[str] | None = None) -> int:
    """Print samples until the reader is gone."""
    parser = argparse.ArgumentParser(prog="python -m trackside_trainer.gpus")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
    chosen = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nvml = load()
    while True:
        try:
            sys.stdout.write(json.dumps(sample(nvml)) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            return 0
        if chosen.once:
            return 0
        time.sleep(chosen.every)


if __name__ == "__main__":
    sys.exit(main())
