"""One service of a home as a process of the launcher's: its start, its end, its log."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trackside.processes import descendants, die_with_parent, kill


@dataclass(kw_only=True, slots=True)
class Service:
    """One service as the launcher sees it."""

    name: str
    argv: list[str]
    env: dict[str, str]
    log_path: Path
    grace_s: float
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    deaths_s: list[float] = field(default_factory=list)
    start_at_s: float = 0.0

    def start(self) -> None:
        parent = os.getpid()
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),  # noqa: PLW1509 -- we run one thread
            )  # fmt: skip
        try:
            self.pidfd = os.pidfd_open(process.pid)
        except OSError:  # the host has no descriptor to give: nobody would see its end
            process.kill()
            process.wait()
            raise
        self.process = process

    def ended(self) -> int | None:
        """The exit status of a process that has ended since the last look."""
        if self.process is None or self.process.poll() is None:
            return None
        status = self.process.returncode
        os.close(self.pidfd)
        self.process, self.pidfd = None, -1
        return status

    def stop(self, *, hurry: Callable[[], bool]) -> None:
        """SIGTERM, its grace unless there is a hurry, then SIGKILL to it and all below it."""
        if self.process is None:
            return
        self.process.terminate()
        deadline = time.monotonic() + self.grace_s
        while self.process.poll() is None and time.monotonic() < deadline and not hurry():
            select.select([self.pidfd], [], [], 0.1)
        if self.process.poll() is None:
            kill([*descendants(self.process.pid), self.process.pid])
            self.process.wait()
        self.ended()

    def log_end(self, lines: int = 20) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
