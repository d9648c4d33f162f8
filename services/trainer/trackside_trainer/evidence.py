"""What an attempt's end is judged by, beside its status: last words, crash dumps, memory. Read once, at the end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_CHARS: Final = 8 * 1024
_LINES: Final = 20
_LINE_CHARS: Final = 300
_TAIL_BYTES: Final = 128 * 1024
_DUMP_CHARS: Final = 4 * 1024
_CRASH: Final = re.compile(r"^Fatal Python error: .*?(?=^Extension modules:|\Z)", re.MULTILINE | re.DOTALL)
_BELOW: Final = re.compile(r'^  File "[^"\n]*/trackside/sdk/(?:program|runner)\.py".*(?:\n  .*)*', re.MULTILINE)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_LARGE_SHARE: Final = 0.2  # of the memory there is: whoever held less was hardly what the kernel looked for
EXIT_CODES: Final = {
    2: "wrong usage, as command line parsers tell it",
    120: "Python could not flush its output at the end",
    126: "a command could not be executed",
    127: "a command was not found, or the attempt could not be started",
    134: "a shell's word for SIGABRT: a library gave up",
    137: "a shell's word for SIGKILL: often the kernel's, for memory",
    139: "a shell's word for SIGSEGV: a crash in native code",
    143: "a shell's word for SIGTERM: somebody asked it to end",
}


def last_lines(output: Path, *, before_crash: bool = False) -> str | None:
    """The last lines that the attempt printed, those of a crash dump left out if asked; None when there are none."""
    text = _tail(output)
    if before_crash:
        text = text[: crash.start()] if (crash := _CRASH.search(text)) else text
    # What a progress bar drew anew is the same line, of which the last state counts.
    parts = (line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))
    lines = [part for part in parts if part]
    shown = [line if len(line) <= _LINE_CHARS else f"{line[:_LINE_CHARS]}..." for line in lines[-_LINES:]]
    return "last output:\n" + "\n".join(shown) if shown else None


def crash_dump(output: Path) -> str | None:
    """What faulthandler wrote when native code crashed, without the list of loaded modules."""
    found = None
    for found in _CRASH.finditer(_tail(output)):  # noqa: B007 -- the last one counts
        pass
    return None if found is None else program_frames(found.group()).strip()[:_DUMP_CHARS]


def program_frames(dump: str) -> str:
    """Stacks as faulthandler writes them, without the thirty frames of ours below the program's own."""
    return _BELOW.sub("  ...", dump)


def bounded(texts: Iterable[str | None]) -> tuple[str, ...]:
    """The texts that are there, in order of weight, as far as they fit."""
    kept: list[str] = []
    left = MAX_CHARS
    for text in texts:
        data = (text or "").encode("utf-8", "replace")
        if not data or left < 100:
            continue
        cut = data if len(data) <= left else data[: left - 4].decode("utf-8", "ignore").encode() + b"\n..."
        kept.append(cut.decode("utf-8", "replace"))
        left -= len(cut)
    return tuple(kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryKills:
    """How often the kernel has killed for memory, as far as can be seen from here."""

    count: int | None
    where: str

    @classmethod
    def now(cls) -> MemoryKills:
        counters = [*((folder / "memory.events", "this cgroup") for folder in _cgroups()), *_COUNTERS]
        for path, where in counters:
            try:
                fields = dict(line.split() for line in path.read_text().splitlines())
                return cls(count=int(fields["oom_kill"]), where=where)
            except (OSError, ValueError, KeyError):
                continue
        return cls(count=None, where="")

    def since(self, before: MemoryKills) -> int:
        """How many more; 0 when the two cannot be compared."""
        if self.count is None or before.count is None or self.where != before.where:
            return 0
        return max(0, self.count - before.count)


# cgroup v1 keeps its counter elsewhere; the host's own counts everybody's.
_COUNTERS: Final = (
    (_CGROUPS / "memory" / "memory.oom_control", "this cgroup"),
    (_PROC / "vmstat", "the host"),
)


def memory_limit_mib() -> float | None:
    """How much memory an attempt could have at most."""
    found = [_number(folder / "memory.max") for folder in _cgroups()]
    found.append(_number(_CGROUPS / "memory" / "memory.limit_in_bytes"))
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        total = 0
    limits = [value for value in (*found, total) if value]
    return min(limits) / 2**20 if limits else None


def killed_for_memory(before: MemoryKills, peak_mib: float | None, *, loader: bool = False) -> str | None:
    """What speaks for the kernel's having killed this very process for memory; None if nothing does.

    `loader`: a child that loads data for it was killed, and that one may have been small beside its parent.
    """
    kills, limit_mib = MemoryKills.now(), memory_limit_mib()
    count = kills.since(before)
    if not count or not (loader or was_large(peak_mib, limit_mib)):
        return None
    words = f"the kernel killed {count} process{'es' if count > 1 else ''} of {kills.where} for memory meanwhile"
    if peak_mib is None or limit_mib is None:
        return words
    return f"{words}; this one had used up to {peak_mib:.0f} MiB of {limit_mib:.0f} MiB"


def was_large(peak_mib: float | None, limit_mib: float | None) -> bool:
    """Whether a process of this size can be what the kernel killed; a kill elsewhere must not be taken for it."""
    return peak_mib is not None and limit_mib is not None and peak_mib >= _LARGE_SHARE * limit_mib


def _cgroups() -> list[Path]:
    """This process's cgroup and those above it, nearest first; a container sees its own as the root."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    folder = _CGROUPS / own
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(_CGROUPS))]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
    except OSError:
        return ""
