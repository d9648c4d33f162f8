"""The control page: 136 bytes of memory that the worker and the attempt share through a file.

    0  magic        1  command, written by the worker      2  completed steps      3  total, -1 unknown
    4  first step of this attempt, -1 none yet             5  phase                6  last boundary, monotonic ns
    7  when the program last showed before its first step that it uses the SDK, monotonic ns, 0 never
    8  step of the newest checkpoint that the bus has accepted, written by the worker, -1 none
    9  how often the worker has asked for something or taken it back    10  1: the run has a checkpointer
    11 the number (field 9) of the pause that was refused, -1 none       12 the error number behind that, 0 none
    13 how the attempt ended, 0 not yet    14 its first bad step, 0 none    15 1: perhaps it left because it was asked
    16 the number (field 9) of what the worker has sent its newest SIGTERM for, 0 none yet

Each field is one aligned 64-bit word, so that a reader never sees half a value. Only the worker writes fields 1, 8, 9
and 16, and only the attempt writes the others, so that no lock is needed. The file's one block is there before the
attempt starts, so a full disk takes nothing of this away.
"""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from trackside.errors import ConfigurationError
from trackside.wholefile import replacing

SIZE_BYTES: Final = 136
MAGIC: Final = 0x545253
_COMMAND, _COMPLETED, _TOTAL, _FIRST, _PHASE, _BOUNDARY, _OPENED, _ACCEPTED = range(1, 9)
_ASKS, _SAVES, _REFUSED, _TROUBLE, _OUTCOME, _BAD_STEP, _EARLY, _SIGNALLED = range(9, 17)
# By their place, from 1, so a name is never moved or taken out.
OUTCOMES: Final = (
    *("succeeded", "user_error", "oom_gpu", "oom_host", "cuda_error", "invalid_job", "diverged"),
    *("preempted", "paused", "cancelled", "fenced"),
)


class Command(IntEnum):
    """What the worker asks of the attempt; `reason` is the outcome that obeying it leads to."""

    NONE = 0
    PREEMPT = 1
    PAUSE = 2
    CANCEL = 3
    FENCED = 4

    @property
    def reason(self) -> str:
        return ("", "preempted", "paused", "cancelled", "fenced")[self.value]


class Phase(IntEnum):
    """What the attempt is doing; STARTING is also said after the last step: no step loop is active."""

    STARTING = 0
    STEPPING = 1
    SAVING = 2
    ENDED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How the attempt ended, as its end line says at greater length."""

    outcome: str
    bad_step: int | None = None
    early: bool = False  # perhaps it left because it was asked


class ControlPage:
    """One attempt's page, mapped into this process."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("q")

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> ControlPage:
        """Write a fresh page at `path` and map it; a page that stood there stays with those who mapped it."""
        with replacing(Path(path)) as aside:
            aside.write_bytes(bytes(SIZE_BYTES))
            page = cls._map(aside)
            page._reset()
        return page

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ControlPage:
        """Map the page at `path`; raises ConfigurationError when it is none."""
        page = cls._map(Path(path))
        if page._words[0] != MAGIC:
            page.close()
            raise ConfigurationError(f"{path} is no control page: let the worker create it before the attempt starts")
        return page

    @classmethod
    def in_memory(cls) -> ControlPage:
        """A page of this process alone, for a run outside of a job."""
        page = cls(mmap.mmap(-1, SIZE_BYTES))
        page._reset()
        return page

    @classmethod
    def _map(cls, path: Path) -> ControlPage:
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < SIZE_BYTES:
                raise ConfigurationError(f"{path} is too short for a control page: let the worker create it")
            return cls(mmap.mmap(file.fileno(), SIZE_BYTES))

    def _reset(self) -> None:
        self._words[_TOTAL] = -1
        self._words[_FIRST] = -1
        self._words[_ACCEPTED] = -1
        self._words[_REFUSED] = -1
        self._words[0] = MAGIC

    def close(self) -> None:
        """Unmap the page; it must not be used afterwards."""
        self._words.release()
        self._memory.close()

    def boundary(self, completed: int) -> None:
        """Store that `completed` steps are done, now."""
        words = self._words
        words[_COMPLETED] = completed
        words[_BOUNDARY] = time.monotonic_ns()

    @property
    def command(self) -> Command:
        """What the worker asks; an unknown word reads as PREEMPT, the stop that loses nothing."""
        try:
            return Command(self._words[_COMMAND])
        except ValueError:
            return Command.PREEMPT

    @command.setter
    def command(self, value: Command) -> None:
        """Ask for something, also once more, or with NONE take it back."""
        self._words[_COMMAND] = value
        self._words[_ASKS] += 1

    @property
    def asks(self) -> int:
        """How often something was asked or taken back."""
        return self._words[_ASKS]

    @property
    def signalled(self) -> int:
        """The value of `asks` when the worker sent its newest SIGTERM, 0 before the first; each is of another."""
        return self._words[_SIGNALLED]

    def signals(self) -> None:
        """Say, right before it, that a SIGTERM comes for what is asked now: one that is not told of is a stranger's."""
        self._words[_SIGNALLED] = self._words[_ASKS]

    @property
    def heard(self) -> Command:
        """What may have made the run leave: not a pause that no signal has told of, or that it has refused."""
        command = self.command
        if command is Command.PAUSE and (self.signalled != self.asks or self.refused is not None):
            return Command.NONE
        return command

    def refuse(self, asks: int, trouble: int) -> None:
        """Say that what was asked then (a value of `asks`) cannot be done, for which error number."""
        self._words[_TROUBLE] = trouble
        self._words[_REFUSED] = asks

    @property
    def refused(self) -> int | None:
        """The error number for which what is asked now was refused, 0 for another cause; None: it was not."""
        return self._words[_TROUBLE] if self._words[_REFUSED] == self._words[_ASKS] else None

    @property
    def saves(self) -> bool:
        """Whether the run has a checkpointer."""
        return bool(self._words[_SAVES])

    @saves.setter
    def saves(self, value: bool) -> None:
        self._words[_SAVES] = value

    @property
    def end(self) -> End | None:
        """How the attempt ended; None while it runs, and where it died."""
        code = self._words[_OUTCOME]
        if not 0 < code <= len(OUTCOMES):
            return None
        bad_step = self._words[_BAD_STEP] or None
        return End(outcome=OUTCOMES[code - 1], bad_step=bad_step, early=bool(self._words[_EARLY]))

    @end.setter
    def end(self, value: End) -> None:
        self._words[_BAD_STEP] = value.bad_step or 0
        self._words[_EARLY] = value.early
        self._words[_OUTCOME] = OUTCOMES.index(value.outcome) + 1

    @property
    def completed(self) -> int:
        """Steps done, over all attempts."""
        return self._words[_COMPLETED]

    @property
    def total(self) -> int | None:
        """Steps to do; None when the run did not say."""
        value = self._words[_TOTAL]
        return None if value < 0 else value

    @total.setter
    def total(self, value: int | None) -> None:
        self._words[_TOTAL] = -1 if value is None else value

    @property
    def first(self) -> int | None:
        """The first step that this attempt runs; None before its step loop started."""
        value = self._words[_FIRST]
        return None if value < 0 else value

    @first.setter
    def first(self, value: int) -> None:
        self._words[_FIRST] = value

    @property
    def phase(self) -> Phase:
        return Phase(self._words[_PHASE])

    @phase.setter
    def phase(self, value: Phase) -> None:
        self._words[_PHASE] = value

    @property
    def boundary_ns(self) -> int | None:
        """CLOCK_MONOTONIC at the last boundary, comparable on this host only; None before the first."""
        return self._words[_BOUNDARY] or None

    @property
    def opened_ns(self) -> int | None:
        """CLOCK_MONOTONIC when the program last used the SDK outside of its step loop; None if it never did."""
        return self._words[_OPENED] or None

    def opened(self) -> None:
        """Say that the program uses the SDK, now."""
        self._words[_OPENED] = time.monotonic_ns()

    @property
    def accepted(self) -> int | None:
        """Step of the newest accepted checkpoint, where a next attempt would resume; None if there is none."""
        value = self._words[_ACCEPTED]
        return None if value < 0 else value

    @accepted.setter
    def accepted(self, value: int) -> None:
        self._words[_ACCEPTED] = value
