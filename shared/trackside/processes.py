"""What Linux offers for looking after processes: who lives, who descends from whom, and how to end all of them.

A pid alone names nobody, since the kernel gives it out again; a pid and a start time do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trackside.errors import ServerError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)  # loaded before any fork
_PROC: Final = Path("/proc")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / (1024 * 1024)
_POLL_S: Final = 0.005
# Lists of children spare a look at every process of the machine; some kernels are built without.
_LISTS_CHILDREN: Final = Path(f"/proc/self/task/{os.getpid()}/children").exists()


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Have the kernel send this process `signum` when its parent dies; exits now if the parent is gone already.

    For use right after a fork. The signal is tied to the parent's thread that forked. A handler that the fork brought
    along would take a signal that comes before an exec, and nothing would end the program that begins after it.
    """
    if signum != signal.SIGKILL:
        signal.signal(signum, signal.SIG_DFL)
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper() -> None:
    """Have orphaned descendants become this process's children, so that none can leave its tree."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def stop_signals() -> list[signal.Signals]:
    """What asks a process for its end: its terminal's end too, but under `nohup`, which has that ignored."""
    hangs_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One line of /proc: `started` is in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    session: int
    started: int
    cpu_ticks: int
    rss_pages: int


def look(pid: int) -> Process | None:
    """What the kernel knows of a process; None if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="latin-1")
    except OSError:
        return None
    rest = text[text.rindex(")") + 2 :].split()  # the name before may hold anything, brackets and blanks too
    return Process(
        pid=pid,
        state=rest[0],
        parent=int(rest[1]),
        session=int(rest[3]),
        started=int(rest[19]),
        cpu_ticks=int(rest[11]) + int(rest[12]),
        rss_pages=int(rest[21]),
    )


def watch_child(pid: int) -> int:
    """A descriptor that becomes readable at the end of this child of ours.

    Raises OSError where the host has none to give, and the child is ended then: nobody would see to it.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        kill([pid])
        os.waitpid(pid, 0)
        raise


def start_time(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if there is none."""
    found = look(pid)
    return None if found is None else found.started


def boot() -> str | None:
    """What names the life of these pids: the machine's boot and the pid namespace; None where the kernel tells neither.

    A pid and a start time written down before a restart of the machine, or of the container, name nobody after it.
    """
    try:
        number = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
        return f"{number} {(_PROC / 'self' / 'ns' / 'pid').readlink()}"
    except OSError:
        return None


def alive(pid: int | None, started: int | None) -> bool:
    """Whether exactly this process still runs; a zombie does not."""
    found = look(pid) if pid else None
    return found is not None and found.started == started and found.state not in "ZX"


def is_this_boot(booted: object) -> bool:
    """Whether pids that were written down in this boot may still mean somebody; None: in which one is not known."""
    return booted is None or booted == boot()


def is_same(pid: object, started: object, booted: object) -> bool:
    """Whether the process that was written down so still runs, as far as this user may see it.

    What is None is not known, since an earlier version did not write it, and the rest is believed without it.
    """
    if not isinstance(pid, int) or pid <= 0 or not is_this_boot(booted):
        return False
    found = look(pid)
    if found is not None:
        return found.state not in "ZX" and started in (None, found.started)
    try:
        os.kill(pid, 0)  # other users' processes may be hidden from us
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def everybody() -> Iterator[Process]:
    """Every process of this machine that can be seen."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (found := look(int(entry.name))) is not None:
            yield found


def descendants(pid: int) -> list[int]:
    """All processes below one, parents before children, zombies too."""
    below: dict[int, list[int]] = {}
    if not _LISTS_CHILDREN:
        for other in everybody():
            below.setdefault(other.parent, []).append(other.pid)
    found: list[int] = []
    pending = [pid]
    while pending:
        at = pending.pop()
        new = _children(at) if _LISTS_CHILDREN else below.get(at, [])
        found += new
        pending += new
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    tasks = _PROC / str(pid) / "task"
    try:
        for task in tasks.iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        return found  # it ended while we looked
    return found


def usage(pids: Iterable[int]) -> tuple[float, float]:
    """Seconds of processor time so far, and resident memory in MiB, of these processes together."""
    seen = [found for pid in pids if (found := look(pid)) is not None]
    return sum(p.cpu_ticks for p in seen) / _TICKS_PER_S, sum(p.rss_pages for p in seen) * _PAGE_MIB


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to each; one that is gone already is passed over."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def is_anothers(pid: int) -> bool:
    """Whether it is another user's, whom we may not end."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def reap() -> dict[int, int]:
    """Wait for every child that has ended; their wait statuses by pid."""
    found: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found[pid] = status


def children(pid: int) -> list[int]:
    """The direct children of a process, zombies too."""
    if _LISTS_CHILDREN:
        return _children(pid)
    return [other.pid for other in everybody() if other.parent == pid]


def reap_orphans(known: Container[int]) -> None:
    """Wait for every child of ours that has ended and is not `known`; those are for others to ask after."""
    for pid in children(os.getpid()):
        if pid not in known:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill_until_gone(find: Callable[[], list[int]], *, limit_s: float) -> list[int]:
    """Kill what `find` returns until it finds nobody; returns who is left at the limit, stuck in the kernel.

    Repeated, because a process can fork between being seen and being killed.
    """
    deadline_s = time.monotonic() + limit_s
    while left := [pid for pid in find() if (found := look(pid)) is not None and found.state not in "ZX"]:
        kill(left)
        if time.monotonic() > deadline_s:
            return left
        time.sleep(_POLL_S)
    return []


def of_attempt(pid: int | None, pid_started: int | None, marker: str) -> list[int]:
    """Who is left of an attempt: its process, its session, and whoever carries its environment.

    `marker` is the variable that only this attempt's processes have (`TRACKSIDE_ATTEMPT=...`).
    """
    wanted = marker.encode()
    found: list[int] = []
    for other in everybody():
        if other.pid == os.getpid() or other.state in "ZX":
            continue
        same = other.pid == pid and other.started == pid_started
        in_session = other.session == pid and pid_started is not None and other.started >= pid_started
        if same or in_session or wanted in _environment(other.pid):
            found.append(other.pid)
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []


def drop_descriptors(keep: Iterable[int] = ()) -> None:
    """Turn every inherited descriptor above 2 into /dev/null.

    Not closed: the objects that own them in this copy of the process would later close a number that is in new use.
    """
    kept = {0, 1, 2, *keep}
    null = os.open(os.devnull, os.O_RDWR)
    for entry in list((_PROC / "self" / "fd").iterdir()):
        fd = int(entry.name)
        if fd not in kept and fd != null:
            with suppress(OSError):
                os.fstat(fd)  # the listing's own descriptor is closed by now
                os.dup2(null, fd, inheritable=False)
    os.close(null)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise ServerError(f"prctl({option}) failed: {os.strerror(code)}; Trackside's services need Linux")
