"""What the tests of the supervisor share: a slot whose trainer is played by the test, and a life of jobs on it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import makers
from makers import SLOT, a_checkpoint
from trackside.bus import beats, streams
from trackside.bus.client import Client, connect
from trackside.config import Settings
from trackside.errors import BusUnavailable, Conflict
from trackside.models import (
    AttemptState,
    Beat,
    Event,
    JobState,
    Outcome,
    Reason,
    Role,
)
from trackside.store import Store
from trackside_supervisor import crashpoints, service
from trackside_supervisor.replay import differs, replay

FORK = multiprocessing.get_context("fork")

SPEC = replace(makers.SPEC, retries=9)
BREAKER_AFTER = 2
TIMES = {
    # TTLs that a busy machine keeps up with. Only test_supervisor_truth waits for a silence, and only the successor of
    # a frozen leader for the end of a lease; should it lose its own, the frozen one that woke would lead again.
    "beat_s": 0.05, "beat_ttl_s": 1.0, "silent_margin_s": 0.1, "tick_s": 0.02, "lease_ttl_s": 2.0,
    "backoff_first_s": 0.02, "backoff_max_s": 0.05, "breaker_first_s": 0.1, "breaker_max_s": 0.3,
}  # fmt: skip


def supervise(url: str, settings: Settings, crash_at: str | None = None) -> None:
    """What a forked supervisor's process does until SIGTERM."""
    crashpoints.arm(crash_at)
    supervisor = service.Supervisor(settings, connect(url, name="supervisor"), url)
    signal.signal(signal.SIGTERM, supervisor.stop)
    supervisor.run()


def _command(env: dict[str, str]) -> None:
    os.execve(sys.executable, [sys.executable, "-m", "trackside", "supervisor"], env)  # noqa: S606 -- no shell


class Supervisors:
    """Supervisors of one home in processes of their own, all killed at the end.

    They are forked, which takes a tenth of the time; `by_command` starts them as a person would.
    """

    def __init__(self, url: str, home: Path, *, by_command: bool = False) -> None:
        self.url, self.home, self.by_command = url, home, by_command
        self._started: list[BaseProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.join(10)

    def start(self, crash_at: str | None = None) -> BaseProcess:
        process = self._commanded(crash_at) if self.by_command else self._forked(crash_at)
        process.start()
        self._started.append(process)
        return process

    def _forked(self, crash_at: str | None) -> BaseProcess:
        told = {**TIMES, "home": self.home, "log_level": "error", "host": SLOT.host, "breaker_after": BREAKER_AFTER}
        return FORK.Process(target=supervise, args=(self.url, Settings.from_environ({}, **told), crash_at))

    def _commanded(self, crash_at: str | None) -> BaseProcess:
        told = {**TIMES, "home": self.home, "redis_url": self.url, "host": SLOT.host, "breaker_after": BREAKER_AFTER}
        env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
        env |= {f"TRACKSIDE_{name.upper()}": str(value) for name, value in told.items()}
        if crash_at is not None:
            env[crashpoints.ENVIRONMENT] = crash_at
        return FORK.Process(target=_command, args=(env,))


class Trainer:
    """Plays one slot: beats, claims what it is given, and ends each attempt as `script` says (its last line for ever).

    An attempt that ends `lost` is left alone, as by a worker that was replaced, so that the supervisor has to end it.
    """

    def __init__(self, client: Client, scripts: Mapping[str, tuple[Reason, ...]]) -> None:
        self.store = Store(client, by="worker:h-cpu0")
        self.scripts = scripts
        self.pid, self.born_ms = 10, 0
        self.held: tuple[str, int] | None = None

    def turn(self) -> None:
        """Beat, and bring what is on the slot one step on."""
        self.beat()
        for job in self.store.jobs(self.store.live_job_ids()):
            if job.slot != SLOT.id or self.held == (job.id, job.attempt):
                continue
            if self.store.attempt(job.id, job.attempt).state is AttemptState.ENDED:
                continue
            self.store.claim(job.id, job.attempt, worker_pid=self.pid)
            script = self.scripts.get(job.id, (Reason.SUCCEEDED,))
            reason = script[min(job.attempt, len(script)) - 1]
            if job.attempt == 2:
                self.store.accept_checkpoint(job.id, job.attempt, a_checkpoint(job.attempt, job.attempt))
            if reason is Reason.LOST:
                self.held, self.pid = (job.id, job.attempt), self.pid + 1
                continue
            self.store.end_attempt(job.id, job.attempt, Outcome(reason=reason, detail=f"scripted {reason}"))

    def beat(self) -> None:
        beat = Beat(
            role=Role.WORKER, name=SLOT.id, host="h", pid=self.pid, started_at_ms=self.born_ms, at_ms=0, slot=SLOT.id
        )
        beats.publish(self.store.client, beat, TIMES["beat_ttl_s"])


@contextmanager
def working(trainer: Trainer) -> Iterator[None]:
    """Let the trainer work in a thread of its own."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(0.01):
            try:
                trainer.turn()
            except (Conflict, BusUnavailable):  # the job moved on meanwhile, or a slow disk held the server up
                continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# A life that comes by every rule: crash, progress, a made room, a lost host, a dependency, a breaker with its probe.
SCRIPTS = {
    "parent": (Reason.KILLED, Reason.KILLED, Reason.PREEMPTED, Reason.LOST, Reason.SUCCEEDED),
    "child": (Reason.STALLED, Reason.SUCCEEDED),
    "orphan": (Reason.SUCCEEDED,),
    "broken": (Reason.INVALID_JOB,),
    "other": (Reason.CUDA_ERROR, Reason.SUCCEEDED),  # after the parent's crash: two jobs, so the breaker opens
}


def submit_all(store: Store) -> None:
    store.register_slot(SLOT)
    store.submit("parent", "parent", SPEC)
    store.submit("other", "other", SPEC)
    store.submit("child", "child", replace(SPEC, after=("parent",)))
    store.submit("broken", "broken", replace(SPEC, priority="low"))
    store.submit("orphan", "orphan", replace(SPEC, after=("broken",)))


WANTED = {
    "parent": JobState.SUCCEEDED,
    "child": JobState.SUCCEEDED,
    "other": JobState.SUCCEEDED,
    "broken": JobState.FAILED,
    "orphan": JobState.FAILED,
}


def all_over(store: Store) -> bool:
    jobs = store.jobs(store.job_ids())
    return all(job.state.terminal for job in jobs) and not store.breakers([SLOT.id])


def everything(store: Store) -> list[Event]:
    return [event for _, event in streams.newest_events(store.client, 1000) if event is not None]


def replay_all(told: list[Event]) -> Counter[str | None]:
    """Make every recorded decision again from its inputs; returns how many by cause."""
    assert [words for event in told if (words := differs(event)) is not None] == []
    return Counter(event.cause for event in told if replay(event) is not None)
