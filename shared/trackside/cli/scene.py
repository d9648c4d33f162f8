"""What a fault is done to and what was seen of it, with the tools that faults share."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from trackside import witness
from trackside.bus import streams
from trackside.cli.throwaway import Throwaway, TooLate, now_ms
from trackside.models import Beat, Event
from trackside.oracle import Denial, Sample, Shown, Violation
from trackside.processes import look


@dataclass(kw_only=True, slots=True)
class Harm:
    """What was done: when it began, and what was seen on the way."""

    at_ms: int
    samples: list[Sample] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)  # checkpoints that were spoiled
    broken: list[Violation] = field(default_factory=list)  # promises that were seen broken on the spot
    denials: list[Denial] = field(default_factory=list)  # what was tried that is forbidden
    shown: list[Shown] = field(default_factory=list)  # what a dashboard showed meanwhile


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a fault is done to; processes that it starts end with `stack`."""

    system: Throwaway
    job: str
    rng: random.Random
    stack: ExitStack
    patience_s: float = 60.0  # for what the script does at its own pace, such as its next checkpoint

    def worker(self) -> Beat:
        """The worker of the job's attempt; its process is known and runs, raises TooLate where it does not any more."""
        beat = self.system.worker_of(self.job)
        if beat is None or beat.attempt_pid is None or is_gone(beat.attempt_pid):  # a beat is a moment old
            raise TooLate(f"{self.job} does not run any more: the fault came too late, give the script more steps")
        return beat

    def breaks(self, invariant: str, what: str) -> Violation:
        """A promise that is broken before the history is judged."""
        return Violation(invariant=invariant, job=self.job, what=what)

    def events(self) -> list[Event]:
        """The job's history so far, oldest first."""
        return self.system.ask(lambda: [event for _, event in streams.history(self.system.client, self.job)])

    def entries(self) -> dict[int, int]:
        """How many entries of its metrics stream each attempt has."""
        counts: dict[int, int] = {}
        for entry in witness.entries(self.system.client, self.job):
            counts[entry.attempt] = counts.get(entry.attempt, 0) + 1
        return counts

    def look(self) -> Sample:
        """What the bus shows of the job at this moment."""
        job = self.system.job(self.job)
        live = frozenset() if job.state.terminal else frozenset({self.job})
        return Sample(at_ms=now_ms(), states={self.job: job.state}, live=live, entries={self.job: self.entries()})


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    found = look(pid)
    return found is None or found.state in "ZX"


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Processes sleep until the block ends."""
    try:
        signal_all(pids, signal.SIGSTOP)
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
