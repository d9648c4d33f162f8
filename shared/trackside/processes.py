"""What Linux offers for looking after processes: the parent-death signal, subreapers, and the tree below a process."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

from trackside.errors import ServerError

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signum: int, parent_pid: int) -> None:
    """Have the kernel send this process `signum` when its parent dies; exits now if the parent is gone already.

    For use right after a fork. The signal is tied to the parent's thread that forked.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper() -> None:
    """Have orphaned descendants become this process's children, so that none can leave its tree."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, parents before children; zombies are left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, parent = _state_and_parent(entry)
            if parent is not None and state != "Z":
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def signal_all(pids: list[int], signum: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def _state_and_parent(entry: Path) -> tuple[str | None, int | None]:
    try:
        text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended while we looked
        return None, None
    fields = text[text.rindex(")") + 2 :].split()  # the name in brackets may hold anything
    return fields[0], int(fields[1])


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise ServerError(f"prctl({option}) failed: {os.strerror(code)}; Trackside's services need Linux")
