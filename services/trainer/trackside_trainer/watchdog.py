"""Sees to it that a hung training process ends, and that it is known afterwards where it hung.

It looks at nothing but the control page, so it works while the bus is away. When a limit is passed the process is
asked for the stacks of all its threads first; one that makes a step meanwhile is left alone.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trackside import processes
from trackside.config import Settings
from trackside.models import Job, Reason
from trackside.sdk.page import ControlPage
from trackside_trainer.evidence import program_frames
from trackside_trainer.progress import SAVING_CLOCK, Limits, Progress, Seen, Slowdown, Stall

_DUMP_WAIT_S: Final = 2.0
_HELD_S: Final = 2.0  # stopped for so long it is told; whoever throttles by signals stops it for much less
_HELD_LOOK_S: Final = 0.25
_DUMP_MAX_CHARS: Final = 6_000
_SLOW_S: Final = 5.0
_DOUBLED_MAX: Final = 10
_ONLY_SLOW: Final = "if it was only slow, submit it with a longer --stall-limit"
_STATES: Final = {
    "T": "stopped by a signal (SIGSTOP)",
    "t": "stopped by a debugger",
    "D": "waiting in the kernel, which no signal ends",
    "S": "sleeping",
    "R": "busy",
}
_STOPPED: Final = frozenset("Tt")
_HELD: Final = _STOPPED | {"D"}  # by others: nothing in the script is why it makes no step


@dataclass(frozen=True, kw_only=True, slots=True)
class Hung:
    """The verdict: what was missed, and what the process looked like then."""

    detail: str
    evidence: tuple[str, ...]
    saving: bool = False  # what it missed is the end of a checkpoint


def limits_for(settings: Settings, job: Job | None = None) -> Limits:
    """What counts as a hang: as the job's submitter said, else by its own pace and the settings."""
    step_s, startup_s, save_s = settings.stall_limit_s, settings.startup_limit_s, settings.save_limit_s
    floor_s, own_s = min(settings.stall_floor_s, step_s), job.spec.stall_limit_s if job is not None else None
    if own_s is not None:
        step_s = floor_s = own_s or math.inf
        startup_s, save_s = max(startup_s, step_s), max(save_s, step_s)
    elif job is not None and job.reason is Reason.STALLED:
        # What was learned may have been wrong about a long evaluation: it is not trusted twice in a row, and whoever
        # then comes to the same place with nothing newer saved is given twice as long each time.
        step_s = floor_s = step_s * 2.0 ** min(job.barren, _DOUBLED_MAX)
    return Limits(
        step_s=step_s,
        floor_s=floor_s,
        startup_s=startup_s,
        save_s=save_s,
        slow_s=_SLOW_S / settings.scale,
        learns=own_s is None,
    )


class Watchdog:
    """Watches one process; `look` is called often and never waits."""

    def __init__(
        self, settings: Settings, page: ControlPage, pid: int, stacks: Path, output: Path, job: Job | None = None
    ) -> None:
        self._page, self._pid, self._stacks, self._output = page, pid, stacks, output
        self._progress = Progress(limits_for(settings, job))
        self._stalled: Stall | None = None
        self._state = ""
        self._dump_from = self._dump_size = 0
        self._dump_by_s = 0.0
        self._dump_wait_s = max(0.5, _DUMP_WAIT_S / settings.scale)
        self._held_s = max(0.5, _HELD_S / settings.scale)
        self._held_since_s: float | None = None
        self._held_look_s = 0.0
        self._held_told = False

    def look(self, note: Callable[[str], object]) -> Hung | None:
        """Look at the page; remarks go to `note`, and a verdict comes once the stacks are there or overdue."""
        page = self._page
        self._look_whether_held(note)
        found = self._progress.look(
            Seen(
                now_s=time.monotonic(),
                completed=page.completed,
                first=page.first,
                phase=page.phase,
                boundary_ns=page.boundary_ns,
                opened_ns=page.opened_ns,
            )
        )
        if isinstance(found, Slowdown):
            note(str(found))
        stall = found if isinstance(found, Stall) else None
        if self._stalled is not None and stall is None:
            note(f"{self._stalled}; it went on by itself")
            self._stalled = None
        elif self._stalled is not None:
            return self._verdict(self._stalled)
        elif stall is not None:
            self._begin(stall)
        return None

    def _look_whether_held(self, note: Callable[[str], object]) -> None:
        """Tell once that a signal or a debugger holds it; a limit that tells the same may be far, or there is none."""
        now_s = time.monotonic()
        if self._held_told or now_s < self._held_look_s:
            return
        self._held_look_s = now_s + _HELD_LOOK_S
        found = processes.look(self._pid)
        if found is None or found.state not in _STOPPED:
            self._held_since_s = None
            return
        if self._held_since_s is None:
            self._held_since_s = now_s
        if now_s - self._held_since_s >= self._held_s:
            self._held_told = True
            note(f"the process is {_STATES[found.state]}: `kill -CONT {self._pid}` on its host lets it go on")

    def _begin(self, stall: Stall) -> None:
        self._stalled = stall
        found = processes.look(self._pid)
        self._state = found.state if found is not None else "?"
        self._dump_from = self._dump_size = _size(self._stacks)
        self._dump_by_s = time.monotonic() + self._dump_wait_s
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGUSR2)

    def _verdict(self, stall: Stall) -> Hung | None:
        size = _size(self._stacks)
        settled, self._dump_size = size > self._dump_from and size == self._dump_size, size
        if not settled and time.monotonic() < self._dump_by_s:
            return None
        state = f"the process was {_STATES.get(self._state, f'in state {self._state}')}"
        detail = f"{stall}; {state}" if self._state in _HELD else str(stall)
        dump = self._dump()
        self._tell_output(f"{stall}; {state}", dump)
        stacks = f"stacks of its threads:\n{dump}" if dump else "stacks of its threads: it did not answer"
        return Hung(detail=detail, evidence=(state, stacks), saving=stall.clock == SAVING_CLOCK)

    def _dump(self) -> str:
        try:
            with self._stacks.open("rb") as file:
                file.seek(self._dump_from)
                text = program_frames(file.read(16 * _DUMP_MAX_CHARS).decode("utf-8", "replace")).strip()
        except OSError:
            return ""
        return text if len(text) <= _DUMP_MAX_CHARS else f"...\n{text[-_DUMP_MAX_CHARS:]}"  # the main thread comes last

    def _tell_output(self, why: str, dump: str) -> None:
        """Put it where whoever reads the output looks; a disk that does not take it has the outcome say it alone."""
        with suppress(OSError):
            fd = os.open(self._output, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(fd, f"\n[trackside] {why}; the process is asked to stop ({_ONLY_SLOW})\n{dump}\n".encode())
            finally:
                os.close(fd)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
