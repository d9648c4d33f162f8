"""Processes: which belong to attempts, which have outlived theirs, and how much the services hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from trackside.bus import beats
from trackside.errors import NotFound
from trackside.models import AttemptState, Beat, Role
from trackside.oracle import Usage
from trackside.processes import Process, children, everybody, look, usage
from trackside.sdk.context import ENVIRONMENT
from trackside.store import Store

_PROC: Final = Path("/proc")
_GONE: Final = "ZX"


def processes(home: Path) -> dict[int, tuple[str, int]]:
    """Living processes of the attempts of this home: pid -> job and attempt.

    Known by what a process cannot easily shed all of: its working directory, the attempt's name in the environment that
    it was started with, where its output goes, and its session, whose leader's pid is the attempt's own.
    """
    jobs = str((home / "jobs").absolute())
    found: dict[int, tuple[str, int]] = {}
    rest: list[Process] = []
    for each in everybody():
        if each.state in _GONE or each.pid == os.getpid():
            continue
        whose = _whose(each.pid, jobs)
        if whose is not None:
            found[each.pid] = whose
        else:
            rest.append(each)
    for each in rest:
        if each.session in found and each.session != each.pid:
            found[each.pid] = found[each.session]
    return found


def _whose(pid: int, jobs: str) -> tuple[str, int] | None:
    proc = _PROC / str(pid)
    traces: list[str] = []
    for link in ("cwd", "fd/1", "fd/2"):
        try:
            traces.append(str((proc / link).readlink()))
        except OSError:  # it ended while we looked, is somebody else's, or has closed it
            continue
    try:
        told = re.search(rf"(?:^|\0){ENVIRONMENT}=([^\0]*)".encode(), (proc / "environ").read_bytes())
    except OSError:
        told = None
    if told is not None:
        traces.append(os.fsdecode(told[1]))
    for trace in traces:
        if match := re.match(re.escape(jobs) + r"/([^/]+)/attempts/(\d+)(?:/|$)", trace):
            return match[1], int(match[2])
    return None


def orphans(store: Store, home: Path, *, of_silent: bool = True) -> dict[int, str]:
    """Processes of attempts that have ended, at this moment; one just ended may take a moment to go.

    Without `of_silent` those are left out whose slot's worker is silent: it cannot know that it was overtaken, and is
    asked again when it beats. Whatever a worker without a job still has below it was left there by an earlier attempt.
    """
    known = [beat for beat in beats.read(store.client).values() if beat is not None]
    slots, services = {beat.slot for beat in known}, {beat.pid for beat in known}
    found: dict[int, str] = {}
    for pid, (job_id, number) in processes(home).items():
        if pid in services:
            continue
        try:
            attempt = store.attempt(job_id, number)
        except NotFound:
            found[pid] = f"process {pid} of attempt {number} of {job_id}, which nobody knows"
            continue
        if attempt.state is AttemptState.ENDED and (of_silent or attempt.slot in slots):
            found[pid] = f"process {pid} of attempt {number} of {job_id}"
    for beat in known:
        if beat.role is Role.WORKER and beat.job is None:
            found |= {pid: found.get(pid, f"process {pid} below the idle {beat.name}") for pid in _below(beat)}
    return found


def _below(worker: Beat) -> list[int]:
    return [pid for pid in children(worker.pid) if (seen := look(pid)) is not None and seen.state not in _GONE]


def holds(known: Iterable[Beat]) -> dict[str, Usage]:
    """By kind of service, the most that one of its processes holds; the launcher's children by their names."""
    pids: dict[str, set[int]] = {}
    for beat in known:
        pids.setdefault(beat.role.value, set()).add(beat.pid)
        for name, pid in beat.children.items():
            pids.setdefault(name, set()).add(pid)
    found: dict[str, Usage] = {}
    for kind, members in pids.items():
        seen = [(fds, usage([pid])[1]) for pid in members if (fds := _descriptors(pid)) is not None]
        if seen:
            found[kind] = Usage(fds=max(fds for fds, _ in seen), rss_mib=max(mib for _, mib in seen))
    return found


def _descriptors(pid: int) -> int | None:
    try:
        return len(list((_PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return None
