"""A device for tests: the calls of NVML that Trackside makes, answered from a JSON file that a test rewrites.

    {"gpus": [{"uuid": "GPU-a", "total_mib": 81559, "used_mib": 4, "processes": [{"pid": 7, "used_mib": 900}],
               "clock_event_reasons": 0, "xids": [79], "lost": false}]}

The file is read anew for each sample. Every key but `uuid` may be left out: the device then does not know. `xids` are
all that ever happened; a watcher gets those that came after it began to watch. `answers: false` is a driver that does
not come up.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ENVIRONMENT: Final = "TRACKSIDE_GPU_TABLE"  # the file; only tests set it
_MIB: Final = 1024 * 1024


class TableError(Exception):
    """What the table's device answers where a real one raises NVMLError."""


class Table:
    """Stands for the `pynvml` module. A device's handle is its UUID."""

    NVMLError = TableError
    NVML_TEMPERATURE_GPU: Final = 0
    NVML_CLOCK_SM: Final = 1
    nvmlEventTypeXidCriticalError: Final = 8  # noqa: N815 -- the library's name

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched: dict[str, int] = {}  # Xids of each device that were told

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return _no_answer

    def nvmlInit(self) -> None:  # noqa: N802 -- the library's names, here and below
        if self._read().get("answers") is False:
            raise TableError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus())

    def nvmlDeviceGetHandleByIndex(self, at: int) -> str:  # noqa: N802
        gpu = self._gpus()[at]
        if gpu.get("lost"):
            raise TableError("GPU is lost")
        return str(gpu["uuid"])

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return str(self._known(handle, "name"))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        total, used = self._known(handle, "total_mib"), self._known(handle, "used_mib")
        return SimpleNamespace(total=total * _MIB, used=used * _MIB)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return int(self._known(handle, "clock_event_reasons"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(handle, "compute")

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        return self._processes(handle, "graphics")

    def nvmlEventSetCreate(self) -> list[str]:  # noqa: N802
        return []

    def nvmlDeviceRegisterEvents(self, handle: str, types: int, events: list[str]) -> None:  # noqa: N802
        del types
        self._watched[handle] = len(self._known(handle, "xids"))
        events.append(handle)

    def nvmlEventSetWait(self, events: list[str], timeout_ms: int) -> SimpleNamespace:  # noqa: N802
        del timeout_ms
        handle = events[0]
        happened, told = self._known(handle, "xids"), self._watched[handle]
        if len(happened) <= told:
            raise TableError("Timeout")
        self._watched[handle] += 1
        return SimpleNamespace(eventType=self.nvmlEventTypeXidCriticalError, eventData=happened[told])

    def _processes(self, handle: str, kind: str) -> list[SimpleNamespace]:
        rows = [each for each in self._known(handle, "processes") if each.get("kind", "compute") == kind]
        return [SimpleNamespace(pid=row["pid"], usedGpuMemory=_bytes(row.get("used_mib"))) for row in rows]

    def _known(self, handle: str, name: str) -> Any:
        gpu = next((gpu for gpu in self._gpus() if gpu["uuid"] == handle), {})
        if gpu.get(name) is None:
            raise TableError("Not Supported")
        return gpu[name]

    def _gpus(self) -> list[dict[str, Any]]:
        return list(self._read().get("gpus", []))

    def _read(self) -> dict[str, Any]:
        return dict(json.loads(self._path.read_text()))


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib * _MIB


def _no_answer(*_: Any) -> Any:
    raise TableError("Not Supported")
