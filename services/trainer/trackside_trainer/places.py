"""The agent's slots: which worker serves each, whether its loop goes round, and when it is started again."""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trackside import processes
from trackside.config import Settings
from trackside.models import Slot
from trackside.retry import backoff_s
from trackside_trainer import slotfiles

_RESTART_FIRST_S: Final = 0.5
_RESTART_MAX_S: Final = 60.0


@dataclass(slots=True)
class WorkerHandle:
    """A living worker; `ours` is False for one that an earlier agent started."""

    pid: int
    started: int
    pidfd: int
    ours: bool
    touched_ns: int = 0
    looks: int = 0  # in a row that found no new sign of its loop
    ended_for: str | None = None  # why we have killed it

    @classmethod
    def fork(cls, settings: Settings, slot: Slot, url: str) -> WorkerHandle:
        """Start a worker for the slot as a child of this process."""
        from trackside_trainer.forked import become_worker

        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                become_worker(settings, slot, url)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        return cls(pid=pid, started=processes.start_time(pid) or 0, pidfd=processes.watch_child(pid), ours=True)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> int | None:
        """Done with one that has ended; its wait status if we are its parent."""
        os.close(self.pidfd)
        if not self.ours:
            return None
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return None

    def end(self, why: str) -> None:
        """Kill it; `why` is told as the cause of its attempt's end."""
        self.ended_for = why
        processes.kill([self.pid])


@dataclass(slots=True)
class Place:
    """A slot as the agent sees it."""

    slot: Slot
    worker: WorkerHandle | None = None
    wanted: bool = True  # False: an earlier agent's, not among today's slots
    not_before_s: float = 0.0
    deaths_s: deque[float] = field(default_factory=deque)

    def plan_restart(self, settings: Settings) -> float:
        """Count a death of its worker; how long the next one is to wait."""
        now_s = time.monotonic()
        self.deaths_s.append(now_s)
        while now_s - self.deaths_s[0] > settings.restart_period_s:
            self.deaths_s.popleft()
        excess = len(self.deaths_s) - settings.restart_intensity
        wait_s = backoff_s(excess, first_s=_RESTART_FIRST_S, max_s=_RESTART_MAX_S) if excess > 0 else 0.0
        self.not_before_s = now_s + wait_s
        return wait_s

    def hangs(self, home: Path, *, looks_max: int) -> bool:
        """Look for a sign of its worker's loop; whether too many looks in a row have found none.

        Looks are counted, not time: an agent that was frozen itself has not looked meanwhile.
        """
        worker = self.worker
        if worker is None:
            return False
        touched_ns = slotfiles.slot_lock(home, self.slot.id).touched_ns()
        worker.looks = worker.looks + 1 if touched_ns == worker.touched_ns else 0
        worker.touched_ns = touched_ns
        if worker.looks > looks_max and not slotfiles.can_be_touched(home):
            worker.looks = 0
        return worker.looks > looks_max
