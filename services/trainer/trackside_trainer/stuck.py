"""Keeps a slot from work while processes of an earlier attempt hang in the kernel, where no signal ends them.

Such a process still holds its memory, its files and perhaps its GPU. Whoever could not end it writes it down, so that
the slot's next worker knows too:

<home>/run/stuck/<slot>.json    pids and start times, and the boot in which they mean somebody
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trackside import logs, processes
from trackside.wholefile import write_whole


def note(home: Path, slot_id: str, pids: Iterable[int]) -> None:
    """Write down processes that could not be ended; another user's, as `sudo` makes them, are only told of."""
    left = [(pid, started) for pid in pids if (started := processes.start_time(pid)) is not None]
    found = [each for each in left if not processes.is_anothers(each[0])]
    if anothers := [pid for pid, _ in left if processes.is_anothers(pid)]:
        logs.get().warning("processes_of_another_user", slot=slot_id, pids=anothers, todo="end them as that user")
    if not found:
        return
    logs.get().error("processes_stuck", slot=slot_id, pids=[pid for pid, _ in found])
    path = _path(home, slot_id)
    everybody = sorted({*found, *_alive(path)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, json.dumps({"boot": processes.boot(), "processes": everybody}).encode())
    except OSError as error:
        logs.get().error("stuck_not_noted", slot=slot_id, why=str(error))


class StuckGate:
    """Open unless a process of an earlier attempt on the slot cannot be ended."""

    def __init__(self, home: Path, slot_id: str) -> None:
        self.words: str | None = None  # why the slot takes nothing, for people; None: it does
        self._path = _path(home, slot_id)

    def passes(self) -> bool:
        """Whether work may come in: looks whether those that were written down are gone."""
        pids = [pid for pid, _ in _alive(self._path)]
        if not pids:
            if self.words is not None:
                with suppress(OSError):  # nobody believes what it says any more
                    self._path.unlink(missing_ok=True)
            self.words = None
            return True
        self.words = (
            f"what is left of an earlier attempt (pid {', '.join(map(str, pids))}) hangs in the kernel and cannot be "
            "ended: see what is wrong with its disk or GPU, or restart the machine"
        )
        return False


def _alive(path: Path) -> list[tuple[int, int]]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        found = [(int(pid), int(started)) for pid, started in noted["processes"]]
        return [
            each for each in found if processes.is_same(*each, noted.get("boot")) and not processes.is_anothers(each[0])
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _path(home: Path, slot_id: str) -> Path:
    return home / "run" / "stuck" / f"{slot_id}.json"
