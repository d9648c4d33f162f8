"""What a host's agent samples: GPUs through a process of their own, the host and the attempts from /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from trackside import logs, processes
from trackside.processes import die_with_parent
from trackside.retry import backoff_s

_MODULE: Final = "trackside_trainer.gpus"
_DISCOVERY_LIMIT_S: Final = 30.0  # a driver that has to wake its devices takes seconds
_LINE_MAX_BYTES: Final = 1024 * 1024
_KILL_LIMIT_S: Final = 0.2
_MUTE_S = 10.0  # and three samples: no line for so long means that the driver hangs
_POLL_MAX_S: Final = 1.0  # counted of the time between two polls: whoever was frozen itself has heard nobody
_LEFT_MAX: Final = 3  # more that hang tell no more

_left: list[subprocess.Popen[bytes]] = []  # could not be killed


def find_gpus() -> list[dict[str, Any]]:
    """The GPUs of this host, asked once; empty where there is no driver, or none that answers."""
    look = GpuLook(limit_s=_DISCOVERY_LIMIT_S)
    look.wait(_DISCOVERY_LIMIT_S)
    return look.gpus or []


class GpuLook:
    """One question to the driver, asked in a process of its own while the caller goes on."""

    def __init__(self, *, limit_s: float) -> None:
        self._until_s = time.monotonic() + limit_s
        self._process = _ask("--once")
        self._over = self._process is None
        self.gpus: list[dict[str, Any]] | None = None  # once done; None also where no answer came

    @property
    def done(self) -> bool:
        """Whether the answer is there, or none will come."""
        return self.wait(0.001)  # with no time at all, `communicate` does not even read what is there

    def wait(self, limit_s: float) -> bool:
        """`done`, waiting at most this long."""
        if self._over or self._process is None:
            return True
        try:
            text, _ = self._process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= self._until_s:
                self._over = True
                _end(self._process)
            return self._over
        self._over = True
        with suppress(ValueError):
            found = json.loads(text or b"null")
            self.gpus = found if isinstance(found, list) else None
        return True


def _ask(*words: str) -> subprocess.Popen[bytes] | None:
    """Start the process that talks to the driver; it dies with this one. None where the host has no process to give."""
    parent = os.getpid()
    try:
        return subprocess.Popen(
            [sys.executable, "-m", _MODULE, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL, parent),  # noqa: PLW1509 -- the caller has one thread
        )
    except (OSError, subprocess.SubprocessError) as error:
        logs.get().warning("gpus_not_asked", why=str(error))
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it; what hangs in the driver cannot be killed, and is left to be reaped once the driver lets it go."""
    process.kill()
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(_KILL_LIMIT_S)
    except subprocess.TimeoutExpired:
        _left.append(process)


def left() -> set[int]:
    """The processes that could not be killed, as far as they still are there."""
    _left[:] = [process for process in _left if process.poll() is None]
    return {process.pid for process in _left}


class GpuSampler:
    """Keeps the sampling process going and remembers its newest line."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._failures = 0
        self._not_before_s = 0.0
        self._polled_s = time.monotonic()
        self._mute_s = self._mute_before_s = 0.0  # since the newest line; of it before this process
        self._heard = False  # from this process
        self._mute_limit_s = _MUTE_S + 3 * every_s
        self.newest: list[dict[str, Any]] = []

    @property
    def pids(self) -> set[int]:
        """The sampling process, and those that could not be ended."""
        return left() | ({self._process.pid} if self._process is not None else set())

    @property
    def mute(self) -> bool:
        """Whether there has been no line for so long that the driver must hang."""
        return self._mute_s > self._mute_limit_s

    def poll(self) -> bool:
        """Read what has come, and start the process if it is not there or hangs; whether there is a new line."""
        now_s = time.monotonic()
        self._mute_s += min(now_s - self._polled_s, _POLL_MAX_S)
        self._polled_s = now_s
        if self._process is None:
            self._start()
            return False
        assert self._process.stdout is not None  # noqa: S101 -- it was started with a pipe
        try:
            data = os.read(self._process.stdout.fileno(), _LINE_MAX_BYTES)
        except BlockingIOError:
            limit_s = self._mute_limit_s if self._heard else max(self._mute_limit_s, _DISCOVERY_LIMIT_S)
            if self._mute_s - self._mute_before_s > limit_s:
                self.stop()
            return False
        if not data:
            self._ended()
            return False
        *lines, self._rest = (self._rest + data)[-_LINE_MAX_BYTES:].split(b"\n")
        new = False
        for line in lines:
            try:
                self.newest, self._failures, new = json.loads(line), 0, True
            except ValueError:
                continue
            self._mute_s, self._mute_before_s, self._heard = 0.0, 0.0, True
        return new

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._ended()

    def _start(self) -> None:
        if time.monotonic() < self._not_before_s or len(left()) >= _LEFT_MAX:
            return
        self._mute_before_s, self._heard = self._mute_s, False
        self._process = _ask("--every", str(self._every_s))
        if self._process is None:
            self._ended()
            return
        assert self._process.stdout is not None  # noqa: S101 -- as above
        os.set_blocking(self._process.stdout.fileno(), False)

    def _ended(self) -> None:
        process, self._process = self._process, None
        self._rest, self.newest = b"", []
        self._failures += 1
        self._not_before_s = time.monotonic() + backoff_s(self._failures, first_s=1.0, max_s=60.0)
        if process is not None:
            _end(process)


class HostSampler:
    """Processor, memory and load of the host, and what each attempt's process tree uses."""

    def __init__(self) -> None:
        self._cpu: tuple[int, int] | None = None  # busy and total ticks at the last look
        self._used: dict[int, tuple[float, float]] = {}  # by worker pid: monotonic time, processor seconds

    def sample(self, workers: dict[str, int]) -> dict[str, Any]:
        """One sample; `workers` are the living ones' pids by slot."""
        memory = _memory_mib()
        now_s = time.monotonic()
        attempts: dict[str, Any] = {}
        for slot, pid in workers.items():
            below = processes.descendants(pid)
            used_s, rss_mib = processes.usage(below)
            before = self._used.get(pid)
            self._used[pid] = (now_s, used_s)
            if below:
                pct = None if before is None else round(max(0.0, used_s - before[1]) / (now_s - before[0]) * 100, 1)
                attempts[slot] = {"processes": len(below), "cpu_pct": pct, "rss_mib": round(rss_mib, 1)}
        self._used = {pid: seen for pid, seen in self._used.items() if pid in workers.values()}
        return {
            "cpu_pct": self._cpu_pct(),
            "cores": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 2),
            "memory_total_mib": memory.get("MemTotal"),
            "memory_available_mib": memory.get("MemAvailable"),
            "attempts": attempts,
        }

    def _cpu_pct(self) -> float | None:
        fields = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        before, self._cpu = self._cpu, (total - idle, total)
        if before is None or total <= before[1]:
            return None
        return round((total - idle - before[0]) / (total - before[1]) * 100, 1)


def _memory_mib() -> dict[str, int]:
    found: dict[str, int] = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[0]
        found[name] = int(number) // 1024
    return found
