"""`<home>/run/up.json`: what the launcher of a home says about itself, and what others do by it.

The launcher writes it when it starts, again once everything runs, and removes it when it has stopped. One that was
killed leaves it behind, and the kernel gives its pid to somebody else one day, so the file is believed only where that
very process runs.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from trackside.config import Settings
from trackside.errors import ServerError
from trackside.homelock import HomeLock
from trackside.processes import boot, is_same, start_time
from trackside.secretfiles import write_private


@dataclass(frozen=True, kw_only=True, slots=True)
class Up:
    """A launcher as it wrote itself down; what an earlier version did not write is None."""

    pid: int
    started: int | None
    boot: str | None
    server: str | None  # which one, or the given URL without its password
    dashboard_url: str | None
    starts: bool | None = None  # whether something of it does not run yet


def write_start(home: Path) -> None:
    """Say that this process is the home's launcher, and starts."""
    _write(home, server=None, dashboard_url=None, starts=True)


def write(home: Path, *, server: str, dashboard_url: str | None) -> None:
    """Say that this process is the home's launcher, and that everything runs."""
    _write(home, server=server, dashboard_url=dashboard_url, starts=False)


def _write(home: Path, *, server: str | None, dashboard_url: str | None, starts: bool) -> None:
    pid = os.getpid()
    up = Up(
        pid=pid, started=start_time(pid), boot=boot(), server=server, dashboard_url=dashboard_url, starts=starts
    )  # fmt: skip
    write_private(_path(home), json.dumps(asdict(up)))


def remove(home: Path) -> None:
    """Say that nothing runs any more."""
    with suppress(OSError):  # what it says of a process that has ended is not believed
        _path(home).unlink(missing_ok=True)


def running(settings: Settings) -> Up | None:
    """What `trackside up` of this home wrote about itself, None if none runs, or not everything of it yet."""
    up = _launched(settings)
    return None if up is None or up.starts else up


def _launched(settings: Settings) -> Up | None:
    """What the living launcher of this home wrote about itself, None if there is none."""
    try:
        facts = json.loads(_path(settings.home).read_text(encoding="utf-8"))
        up = Up(**{each.name: facts.get(each.name) for each in fields(Up)})
    except (OSError, ValueError, AttributeError):
        return None
    return up if _is_it(settings, up) else None


def down(settings: Settings, *, limit_s: float = 90.0) -> int | None:
    """Stop what runs or starts for this home and wait for its end; the pid that was stopped, None if nothing ran."""
    up = _launched(settings)
    if up is None:
        return None
    try:
        pidfd = os.pidfd_open(up.pid)
    except ProcessLookupError:
        return None
    if not _is_it(settings, up):  # asked again, since from here on the descriptor names one process only
        os.close(pidfd)
        return None
    with suppress(ProcessLookupError):  # it has ended since, and been waited for
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    ended, _, _ = select.select([pidfd], [], [], limit_s)
    os.close(pidfd)
    if not ended:
        raise ServerError(f"process {up.pid} did not stop within {limit_s:g} s: look at {settings.home / 'logs'}")
    return up.pid


def _path(home: Path) -> Path:
    return home / "run" / "up.json"


def _is_it(settings: Settings, up: Up) -> bool:
    """Whether the launcher that wrote this runs; one of an earlier version wrote no start time, but has a lock.

    Its pid alone is not enough: whoever has it by now would be stopped in its place.
    """
    lives = is_same(up.pid, up.started, up.boot)
    return lives and (up.started is not None or HomeLock(settings.home).is_held)
