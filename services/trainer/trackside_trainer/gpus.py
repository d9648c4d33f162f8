"""What the NVIDIA driver tells, asked in a process of its own: the agent forks, and must never have loaded a driver.

    python -m trackside_trainer.gpus --once            one JSON line, then exit
    python -m trackside_trainer.gpus --every 2.0       one JSON line each time

A line is a list with one object per GPU. No driver, no library or no GPU is an empty list and no error; a field that
the device does not know is null. With `--every`, `xids` are the newest critical errors that the driver told since, and
a line comes at once when there is another; a GPU that had one and is gone from the list keeps an object with them.

In a container the driver may hide processes or give them the host's numbers: `processes` is what it shows, no more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from trackside_trainer import gputable

T = TypeVar("T")
_MIB: Final = 1024 * 1024
_XIDS_KEPT: Final = 32  # a crash of one program may bring dozens
_LOOK_S: Final = 0.25  # for Xids, between two samples
_LOAD_TRIES: Final = 15  # one a sample


class Nvml(Protocol):
    """What is used of the `pynvml` module."""

    NVMLError: type[Exception]
    NVML_TEMPERATURE_GPU: int
    NVML_CLOCK_SM: int
    nvmlEventTypeXidCriticalError: int  # noqa: N815 -- the module's name

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


def _library() -> Any:
    table = os.environ.get(gputable.ENVIRONMENT)
    if table is not None:
        return gputable.Table(Path(table))
    import pynvml

    return pynvml


def load() -> Nvml | None:
    """The library, initialised; None where there is no driver to talk to."""
    try:
        nvml: Nvml = _library()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


class XidWatch:
    """The critical errors of each GPU that the driver tells while this watches; one event set a GPU, so that an error
    is known to be that GPU's also when the GPU itself does not answer any more."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._sets: dict[str, Any] = {}  # by UUID; None: this one cannot tell
        self._seen: dict[str, deque[dict[str, int]]] = {}

    def follow(self, uuid: str, handle: Any) -> None:
        """Watch this GPU as well; asked again: nothing."""
        if uuid in self._sets:
            return
        nvml = self._nvml
        events = _asked(nvml, nvml.nvmlEventSetCreate)
        try:
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except (nvml.NVMLError, AttributeError, TypeError):
            events = None
        self._sets[uuid] = events

    def poll(self) -> bool:
        """Take what was told since; whether anything was."""
        new = False
        for uuid, events in self._sets.items():
            while events is not None and (told := _asked(self._nvml, partial(self._nvml.nvmlEventSetWait, events, 0))):
                if told.eventType == self._nvml.nvmlEventTypeXidCriticalError:
                    # The boot's clock is one for all processes, and is never set back.
                    entry = {"xid": int(told.eventData), "at_ns": time.monotonic_ns()}
                    self._seen.setdefault(uuid, deque(maxlen=_XIDS_KEPT)).append(entry)
                    new = True
        return new

    def of(self, uuid: str | None) -> list[dict[str, int]] | None:
        """The newest ones of a GPU, oldest first; None where they cannot be known."""
        return None if self._sets.get(uuid or "") is None else list(self._seen.get(uuid or "", ()))

    def missing(self, listed: set[str | None]) -> list[str]:
        """The GPUs that had one and are not among those listed."""
        return [uuid for uuid in self._seen if uuid not in listed]


def sample(nvml: Nvml | None, xids: XidWatch | None = None) -> list[dict[str, Any]]:
    """One object per GPU, in the driver's order."""
    if nvml is None:
        return []
    count = _asked(nvml, nvml.nvmlDeviceGetCount) or 0
    found: list[dict[str, Any]] = []
    for at in range(count):
        handle = _asked(nvml, partial(nvml.nvmlDeviceGetHandleByIndex, at))
        if handle is None:
            continue
        device = _device(nvml, handle)
        if xids is not None and device["uuid"] is not None:
            xids.follow(device["uuid"], handle)
        found.append({**device, "xids": xids.of(device["uuid"]) if xids is not None else None})
    if xids is not None:
        gone = xids.missing({device["uuid"] for device in found})
        found += [{"uuid": uuid, "lost": True, "xids": xids.of(uuid)} for uuid in gone]
    return found


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
        "processes": _processes(
            ask("nvmlDeviceGetGraphicsRunningProcesses"), ask("nvmlDeviceGetComputeRunningProcesses")
        ),
    }


def _processes(graphics: Any, compute: Any) -> list[dict[str, Any]] | None:
    """Who has memory on a GPU; who draws and computes computes. None where the driver does not say who computes."""
    if compute is None:
        return None
    rows = [("graphics", each) for each in graphics or ()] + [("compute", each) for each in compute]
    by_pid = {
        each.pid: {"pid": each.pid, "used_mib": None if each.usedGpuMemory is None else each.usedGpuMemory // _MIB,
                   "kind": kind}
        for kind, each in rows
    }  # fmt: skip
    return list(by_pid.values())


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
    nvml: Nvml | None = None
    xids: XidWatch | None = None
    tries = 0
    while tries < _LOAD_TRIES:
        if nvml is None:  # it may be on its way: a driver that is loaded anew takes seconds
            nvml, tries = load(), tries + 1
            xids = XidWatch(nvml) if nvml is not None and not chosen.once else None
        try:
            sys.stdout.write(json.dumps(sample(nvml, xids)) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            return 0
        if chosen.once:
            return 0
        _sleep(chosen.every, xids)
    return 0  # a library that was replaced meanwhile is seen by a new process only


def _sleep(seconds: float, xids: XidWatch | None) -> None:
    """Sleep, but not past a critical error."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        if xids is not None and xids.poll():
            return
        time.sleep(min(left_s, _LOOK_S))


if __name__ == "__main__":
    sys.exit(main())
