"""What a slot leaves on the disk, so that whoever comes next knows who works there and on what.

<home>/run/slots/<slot>.lock    held by its worker for life; its pid and start time inside
<home>/run/slots/<slot>.json    the attempt that its worker has taken and not yet reported as over
<home>/run/agent.lock           held by the agent for life; its pid and start time inside
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from trackside import processes
from trackside.ids import rq_job_id
from trackside.wholefile import left_in, write_whole


class ProcessLock:
    """A file that one process holds for life; the kernel frees it at any kind of end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd: int | None = None

    def take(self) -> bool:
        """Take the lock and write who we are; False if somebody else holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {processes.start_time(os.getpid())}\n".encode(), 0)
        self.fd = fd
        return True

    def touch(self) -> None:
        """Show that the holder's loop goes round, if the disk takes it."""
        with suppress(OSError):
            if self.fd is not None:
                os.utime(self.fd)

    def touched_ns(self) -> int:
        """When the holder last did so; only a change means anything, the clock may be set."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def release(self) -> None:
        """Give the lock back; the file stays."""
        if self.fd is not None:
            os.ftruncate(self.fd, 0)
            os.close(self.fd)
            self.fd = None

    def holder(self) -> tuple[int, int] | None:
        """Pid and start time of the living process that wrote itself into the file."""
        try:
            pid, started = map(int, self.path.read_text().split())
        except (OSError, ValueError):
            return None
        return (pid, started) if processes.alive(pid, started) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenAttempt:
    """An attempt that a worker has taken; the pid is None until its process runs."""

    slot: str
    job: str
    attempt: int
    attempt_dir: str
    worker_pid: int
    worker_started: int
    pid: int | None = None
    pid_started: int | None = None
    boot: str | None = field(default_factory=processes.boot)  # None: not known; the pids mean nothing in another one
    death: str | None = None  # how an agent saw its worker die, in words; None: none has
    death_signal: str | None = None
    death_host: bool | None = None  # whether its host or its agent brought that about

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its pids may still mean somebody."""
        return processes.is_this_boot(self.boot)

    @property
    def worker_lives(self) -> bool:
        """Whether the worker that took it still runs."""
        return processes.is_same(self.worker_pid, self.worker_started, self.boot)

    def write(self, path: Path) -> None:
        """Write the record, as a whole, over the one that is there."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, json.dumps({"v": 1, **asdict(self)}).encode())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None where there is none or none that can be read."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: raw.get(name) for name in cls.__dataclass_fields__})
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def can_be_touched(home: Path) -> bool:
    """Whether this home's disk takes signs of life now; where it does not, nobody's missing ones mean anything."""
    try:
        os.utime(agent_lock(home).path)
    except OSError:
        return False
    return True


def agent_lock(home: Path) -> ProcessLock:
    """The lock that makes one agent to a home."""
    return ProcessLock(home / "run" / "agent.lock")


def slot_lock(home: Path, slot_id: str) -> ProcessLock:
    """The lock that makes one worker to a slot."""
    return ProcessLock(home / "run" / "slots" / f"{slot_id}.lock")


def taken_path(home: Path, job_id: str, number: int, worker_pid: int) -> Path:
    """Where a worker writes that it has taken an attempt; a name for each, since the next worker may take the same."""
    return home / "run" / "taken" / f"{rq_job_id(job_id, number)}.{worker_pid}.json"


def all_taken(home: Path) -> list[tuple[Path, TakenAttempt]]:
    """Every attempt of this home that was taken and not reported as over; clears what was cut short in the writing."""
    folder = home / "run" / "taken"
    for aside, pid in left_in(folder):
        if processes.start_time(pid) is None:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
    found = ((path, TakenAttempt.read(path)) for path in sorted(folder.glob("[!.]*.json")))
    return [(path, taken) for path, taken in found if taken is not None]


def own_processes(home: Path) -> dict[str, list[int]]:
    """By slot, the processes of the attempt that runs on it."""
    found: dict[str, list[int]] = {}
    for _, taken in all_taken(home):
        if taken.pid is not None and processes.is_same(taken.pid, taken.pid_started, taken.boot):
            found[taken.slot] = [taken.pid, *processes.descendants(taken.pid)]
    return found


def known_slots(home: Path) -> list[str]:
    """Ids of all slots that ever had a worker in this home."""
    return sorted(path.stem for path in (home / "run" / "slots").glob("*.lock"))
