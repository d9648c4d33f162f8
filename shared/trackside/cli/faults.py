"""Faults that need no special rights and no special script: each one a function that harms a running system.

A fault is done to a job that is training. It returns when the harm is over (what it froze runs again); what it started
for its purpose ends with the stack that it is given. It only ever touches processes that the system names as its own.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trackside import witness
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.errors import IllegalTransition, ServerError
from trackside.models import Beat, JobState, Reason, Role
from trackside.oracle import Sample
from trackside.processes import alive, descendants, start_time
from trackside.testing import wait_until

SUCCEEDED: Final = frozenset({JobState.SUCCEEDED})
_DIED: Final = frozenset({Reason.KILLED})
_GONE: Final = frozenset({Reason.KILLED, Reason.LOST, Reason.STALLED})
_STOPPED: Final = frozenset({Reason.PREEMPTED, Reason.KILLED})
_ZOMBIE_LIMIT_S: Final = 8.0


@dataclass(kw_only=True, slots=True)
class Harm:
    """What was done: when it began, and what was seen on the way."""

    at_ms: int
    samples: list[Sample] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)  # checkpoints that were spoiled
    broken: list[str] = field(default_factory=list)  # promises that were seen broken on the spot


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a fault is done to; processes that it starts end with `stack`."""

    system: Throwaway
    job: str
    rng: random.Random
    stack: ExitStack

    def worker(self) -> Beat:
        """The worker of the job's attempt; its process is known."""
        beat = self.system.worker_of(self.job)
        if beat is None or beat.attempt_pid is None:
            raise ServerError(f"{self.job} does not run any more: the fault came too late, give the script more steps")
        return beat


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One fault and what may come of it."""

    id: str
    name: str
    inject: Callable[[Scene], Harm]
    quick: bool = False
    attempts_max: int = 2
    reasons: tuple[frozenset[Reason], ...] = ()  # of the first attempts
    states: frozenset[JobState] = SUCCEEDED
    intervals: int = 1  # checkpoint intervals that may be redone


def kill_training(scene: Scene) -> Harm:
    pid = scene.worker().attempt_pid
    return _kill(pid)


def kill_worker(scene: Scene) -> Harm:
    return _kill(scene.worker().pid)


def kill_agent(scene: Scene) -> Harm:
    return _kill(scene.system.beat(Role.AGENT).pid)


def kill_host(scene: Scene) -> Harm:
    """Agent, workers and attempts, all at once, as when a machine loses its power."""
    agent = scene.system.beat(Role.AGENT).pid
    workers = [beat.pid for beat in scene.system.beats(Role.WORKER)]
    tree = [pid for worker in workers for pid in descendants(worker)]
    harm = Harm(at_ms=now_ms())
    signal_all([agent, *workers, *tree], signal.SIGKILL)
    return harm


def kill_supervisor(scene: Scene) -> Harm:
    return _kill(scene.system.beat(Role.SUPERVISOR).pid)


def kill_supervisor_then_training(scene: Scene) -> Harm:
    """Nobody is there to decide when the training dies."""
    pid = scene.worker().attempt_pid
    kill_supervisor(scene)
    return _kill(pid)


def freeze_training(scene: Scene) -> Harm:
    pid = scene.worker().attempt_pid
    harm = Harm(at_ms=now_ms())
    with frozen([pid] if pid else []):
        time.sleep(3 * scene.system.settings.beat_ttl_s)
    return harm


def freeze_host(scene: Scene) -> Harm:
    """A host sleeps past every limit, another attempt runs, and the old one wakes: it may write nothing."""
    system, beat = scene.system, scene.worker()
    tree = [beat.pid, *descendants(beat.pid)]
    started = start_time(beat.attempt_pid or 0)
    harm = Harm(at_ms=now_ms())
    with frozen([system.beat(Role.AGENT).pid, *tree]):
        wait_until(lambda: system.job(scene.job).attempt > (beat.attempt or 0), 30.0, "no other attempt was opened")
        wait_until(lambda: _entries(scene).get((beat.attempt or 0) + 1, 0) > 1, 30.0, "the other attempt logs nothing")
        harm.samples.append(_look(scene))
    woken_s = time.monotonic()
    while alive(beat.attempt_pid, started):
        if time.monotonic() - woken_s > _ZOMBIE_LIMIT_S:
            harm.broken.append(f"the overtaken attempt still runs {_ZOMBIE_LIMIT_S:g} s after it woke")
            break
        time.sleep(0.02)
    harm.samples.append(_look(scene))
    return harm


def stop_trainer(scene: Scene) -> Harm:
    """An orderly stop, as at a deployment: nothing is to be done again."""
    return _kill(scene.system.beat(Role.AGENT).pid, signal.SIGTERM)


def storm_of_signals(scene: Scene) -> Harm:
    """SIGTERM twice and SIGINT many times, at chance moments."""
    pid = scene.worker().attempt_pid or 0
    harm = Harm(at_ms=now_ms())
    for number in (signal.SIGTERM, *[signal.SIGINT] * 5, signal.SIGTERM, *[signal.SIGINT] * 5):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        time.sleep(scene.rng.uniform(0, 0.02))
    return harm


def two_supervisors(scene: Scene) -> Harm:
    second_supervisor(scene)
    return kill_training(scene)


def stale_leader(scene: Scene) -> Harm:
    """The leader sleeps past its lease, another one decides about a death, and the old one wakes with its old plans."""
    second_supervisor(scene)
    leader = scene.system.beat(Role.SUPERVISOR)
    with frozen([leader.pid]):
        harm = kill_training(scene)
        wait_until(
            lambda: any(beat.leader and beat.pid != leader.pid for beat in scene.system.beats(Role.SUPERVISOR)),
            30.0, "nobody took over from a leader that sleeps",
        )  # fmt: skip
        before = scene.system.job(scene.job).attempt
        wait_until(lambda: scene.system.job(scene.job).attempt >= max(before, 2), 30.0, "the new leader did not act")
    return harm


def kill_server(scene: Scene) -> Harm:
    return _kill(scene.system.server_pid())


def server_away(scene: Scene) -> Harm:
    """The server is dead for longer than every limit of silence."""
    launcher = scene.system.beat(Role.LAUNCHER)
    harm = Harm(at_ms=now_ms())
    with frozen([launcher.pid]):
        os.kill(launcher.children["redis"], signal.SIGKILL)
        time.sleep(2 * scene.system.settings.beat_ttl_s + scene.system.settings.silent_margin_s)
    return harm


def freeze_server(scene: Scene) -> Harm:
    """The server answers nobody for three seconds."""
    harm = Harm(at_ms=now_ms())
    with frozen([scene.system.server_pid()]):
        time.sleep(3.0)
    return harm


def freeze_everything(scene: Scene) -> Harm:
    """A laptop's lid is shut: every process sleeps and wakes at once."""
    tree = [scene.system.process.pid, *descendants(scene.system.process.pid)]
    harm = Harm(at_ms=now_ms())
    with frozen(tree):
        time.sleep(3 * scene.system.settings.beat_ttl_s)
    return harm


def damage_checkpoint(scene: Scene) -> Harm:
    """One byte of the newest accepted checkpoint turns over, and the training dies."""
    system = scene.system
    wait_until(lambda: len(system.job(scene.job).checkpoints) > 1, 30.0, "no second checkpoint was accepted")
    pid = scene.worker().attempt_pid or 0
    with frozen([pid]):
        folder = system.home / "jobs" / scene.job / "checkpoints"
        # What is written and not yet accepted will be, once its worker has read the journal.
        newest = max((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: path.name)
        flip_byte(newest, scene.rng)
        harm = Harm(at_ms=now_ms(), damaged={newest.name})
        os.kill(pid, signal.SIGKILL)
    return harm


def cancel_and_kill(scene: Scene) -> Harm:
    """A person cancels while the attempt dies."""
    pid = scene.worker().attempt_pid
    harm = Harm(at_ms=now_ms())
    if scene.rng.random() < 0.5:
        scene.system.ask(lambda: scene.system.store.cancel(scene.job))
        _kill(pid)
    else:
        _kill(pid)
        with suppress(IllegalTransition):
            scene.system.ask(lambda: scene.system.store.cancel(scene.job))
    scene.system.ended(scene.job, 10.0)
    return harm


def cancel_twice(scene: Scene) -> Harm:
    harm = Harm(at_ms=now_ms())
    for _ in range(2):
        scene.system.ask(lambda: scene.system.store.cancel(scene.job))
    scene.system.ended(scene.job, 10.0)
    return harm


def pause_and_resume(scene: Scene) -> Harm:
    harm = Harm(at_ms=now_ms())
    scene.system.ask(lambda: scene.system.store.pause(scene.job))
    scene.system.reaches(scene.job, JobState.PAUSED)
    scene.system.ask(lambda: scene.system.store.resume(scene.job))
    return harm


CANCELLED: Final = frozenset({JobState.CANCELLED})
FAULTS: Final[tuple[Fault, ...]] = (
    Fault(id="F01", name="training killed", inject=kill_training, quick=True, reasons=(_DIED,)),
    Fault(id="F02", name="worker killed", inject=kill_worker, quick=True, reasons=(_DIED,)),
    Fault(id="F02a", name="agent killed", inject=kill_agent, quick=True, attempts_max=1),
    Fault(
        id="F03",
        name="agent, workers and training killed",
        inject=kill_host,
        quick=True,
        reasons=(_GONE,),
        attempts_max=3,  # one may be given to a dead worker whose beat still stands, and be lost before it began
    ),
    Fault(id="F04", name="training frozen, then goes on", inject=freeze_training, quick=True, attempts_max=1),
    Fault(id="F05", name="overtaken attempt wakes up", inject=freeze_host, quick=True, reasons=(_GONE,)),
    Fault(id="F13", name="orderly stop of the trainer", inject=stop_trainer, reasons=(_STOPPED,)),
    Fault(id="F14", name="storm of stop signals", inject=storm_of_signals, reasons=(_STOPPED,)),
    Fault(id="F16", name="supervisor killed", inject=kill_supervisor, quick=True, attempts_max=1),
    Fault(id="F16a", name="supervisor killed, then training", inject=kill_supervisor_then_training, reasons=(_DIED,)),
    Fault(id="F17", name="training killed under two supervisors", inject=two_supervisors, reasons=(_DIED,)),
    Fault(id="F18", name="leader frozen past its lease", inject=stale_leader, reasons=(_DIED,)),
    Fault(id="F20", name="server killed", inject=kill_server, quick=True, attempts_max=1),
    Fault(id="F22", name="server dead past every limit", inject=server_away, attempts_max=1),
    Fault(id="F26", name="server frozen for 3 s", inject=freeze_server, quick=True, attempts_max=1),
    Fault(id="F38", name="newest checkpoint damaged", inject=damage_checkpoint, reasons=(_DIED,), intervals=2),
    Fault(id="F51", name="everything frozen, as by a lid", inject=freeze_everything, quick=True, attempts_max=1),
    Fault(
        id="F59", name="cancelled while it dies", inject=cancel_and_kill, quick=True, attempts_max=1, states=CANCELLED
    ),
    Fault(id="C1", name="cancelled twice", inject=cancel_twice, attempts_max=1, states=CANCELLED),
    Fault(id="C2", name="paused and resumed", inject=pause_and_resume, reasons=(frozenset({Reason.PAUSED}),)),
)


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """Processes sleep until the block ends."""
    signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def second_supervisor(scene: Scene) -> None:
    """Start another supervisor beside the system's own; it ends with the scene."""
    system = scene.system
    before = {beat.pid for beat in system.beats(Role.SUPERVISOR)}
    log = scene.stack.enter_context((system.home / "logs" / "supervisor-2.log").open("ab"))
    process = subprocess.Popen(
        [sys.executable, "-m", "trackside", "--home", str(system.home), "supervisor"],
        env=system.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip
    scene.stack.callback(_stop, process)
    wait_until(
        lambda: {beat.pid for beat in system.beats(Role.SUPERVISOR)} - before, 30.0, "the second supervisor is not seen"
    )


def flip_byte(folder: Path, rng: random.Random) -> None:
    """Turn one byte of a checkpoint's largest file over."""
    path = max((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 0xFF
    path.write_bytes(data)


def _kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> Harm:
    harm = Harm(at_ms=now_ms())
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return harm


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _entries(scene: Scene) -> dict[int, int]:
    """How many entries of its metrics stream each attempt has."""
    counts: dict[int, int] = {}
    for entry in witness.entries(scene.system.client, scene.job):
        counts[entry.attempt] = counts.get(entry.attempt, 0) + 1
    return counts


def _look(scene: Scene) -> Sample:
    job = scene.system.job(scene.job)
    live = frozenset() if job.state.terminal else frozenset({scene.job})
    return Sample(at_ms=now_ms(), states={scene.job: job.state}, live=live, entries={scene.job: _entries(scene)})
