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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from trackside.cli import distress
from trackside.cli.scene import Harm, Scene, frozen, signal_all
from trackside.cli.throwaway import now_ms
from trackside.errors import IllegalTransition
from trackside.models import AttemptState, JobState, Reason, Role
from trackside.processes import alive, descendants, die_with_parent, start_time
from trackside.testing import wait_until

__all__ = ["FAULTS", "Fault", "Harm", "Need", "Scene", "frozen", "signal_all"]

SUCCEEDED: Final = frozenset({JobState.SUCCEEDED})
_DIED: Final = frozenset({Reason.KILLED})
_LOST: Final = frozenset({Reason.LOST})
_GONE: Final = frozenset({Reason.KILLED, Reason.LOST, Reason.STALLED})
_STOPPED: Final = frozenset({Reason.PREEMPTED, Reason.KILLED})
_ZOMBIE_LIMIT_S: Final = 2.5  # 2 s are promised; its worker looks at its job every 0.2 s, and we look too


class Need(StrEnum):
    """What a fault can only be shown on."""

    STEPS = "steps"  # counted by run.steps
    CHECKPOINTS = "checkpoints"  # several
    LARGE_CHECKPOINTS = "large checkpoints"  # larger than whatever else the script writes
    SLOTS = "two slots"


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
    needs: frozenset[Need] = frozenset()  # it is not applicable to a script that has them not
    hangs: bool = False  # the run gets a limit of silence as short as its own pace allows
    bystander: bool = False  # another job runs beside the harmed one, and nothing may happen to it
    # Longer than this only if something is stuck, and no busy machine explains it; None: the clocks are wrong.
    noticed_max_s: float | None = 30.0
    stepping_max_s: float | None = 60.0


def kill_training(scene: Scene) -> Harm:
    pid = scene.worker().attempt_pid
    return _kill(pid)


def kill_worker(scene: Scene) -> Harm:
    return _kill(scene.worker().pid)


def kill_agent(scene: Scene) -> Harm:
    return _kill(scene.system.beat(Role.AGENT).pid)


def kill_host(scene: Scene) -> Harm:
    """Agent, workers and attempts, all at once, as when a machine loses its power."""
    scene.worker()
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
    number = beat.attempt or 0
    harm = Harm(at_ms=now_ms())
    with frozen([system.beat(Role.AGENT).pid, *tree]):
        wait_until(lambda: system.job(scene.job).attempt > number, 30.0, "no other attempt was opened")
        wait_until(lambda: _works(scene, number + 1), scene.patience_s, "the other attempt logs nothing")
        harm.samples.append(scene.look())
    woken_s = time.monotonic()
    while alive(beat.attempt_pid, started):
        if time.monotonic() - woken_s > _ZOMBIE_LIMIT_S:
            harm.broken.append(
                scene.breaks("I3", f"the overtaken attempt still runs {_ZOMBIE_LIMIT_S:g} s after it woke")
            )
            break
        time.sleep(0.02)
    harm.samples.append(scene.look())
    return harm


def stop_trainer(scene: Scene) -> Harm:
    """An orderly stop, as at a deployment: nothing is to be done again."""
    scene.worker()
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
    wait_until(
        lambda: len(system.job(scene.job).checkpoints) > 1, scene.patience_s, "no second checkpoint was accepted"
    )
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
    worker = scene.worker()
    harm = Harm(at_ms=now_ms())
    if scene.rng.random() < 0.5:
        scene.system.ask(lambda: scene.system.store.cancel(scene.job))
        _kill(worker.attempt_pid)
    else:
        with frozen([worker.pid]), suppress(IllegalTransition):  # else another attempt may begin before the cancel
            _kill(worker.attempt_pid)
            scene.system.ask(lambda: scene.system.store.cancel(scene.job))
    scene.system.ended(scene.job, 10.0)
    return harm


def cancel_twice(scene: Scene) -> Harm:
    scene.worker()
    harm = Harm(at_ms=now_ms())
    for _ in range(2):
        scene.system.ask(lambda: scene.system.store.cancel(scene.job))
    scene.system.ended(scene.job, 10.0)
    return harm


def pause_and_resume(scene: Scene) -> Harm:
    scene.worker()
    harm = Harm(at_ms=now_ms())
    scene.system.ask(lambda: scene.system.store.pause(scene.job))
    scene.system.reaches(scene.job, JobState.PAUSED, scene.patience_s)
    scene.system.ask(lambda: scene.system.store.resume(scene.job))
    return harm


CANCELLED: Final = frozenset({JobState.CANCELLED})
_SAVES: Final = frozenset({Need.CHECKPOINTS})
FAULTS: Final[tuple[Fault, ...]] = (
    Fault(id="F01", name="training killed", inject=kill_training, bystander=True, quick=True, reasons=(_DIED,)),
    Fault(id="F02", name="worker killed", inject=kill_worker, quick=True, reasons=(_DIED,)),
    Fault(id="F02a", name="agent killed", inject=kill_agent, quick=True, attempts_max=1),
    Fault(
        id="F03",
        name="agent, workers and training killed",
        inject=kill_host,
        quick=True,
        reasons=(_LOST,),
        attempts_max=3,  # one may be given to a dead worker whose beat still stands, and be lost before it began
    ),
    Fault(
        id="F04",
        name="training frozen, then goes on",
        inject=freeze_training,
        bystander=True,
        quick=True,
        attempts_max=1,
    ),
    Fault(
        id="F05",
        name="overtaken attempt wakes up",
        inject=freeze_host,
        quick=True,
        reasons=(_GONE,),
        needs=frozenset({Need.SLOTS}),
    ),
    Fault(
        id="F08a",
        name="training stopped for good, a hang",
        inject=distress.hang,
        quick=True,
        reasons=(frozenset({Reason.STALLED}),),
        needs=frozenset({Need.STEPS}),
        hangs=True,
    ),
    Fault(id="F13", name="orderly stop of the trainer", inject=stop_trainer, reasons=(_STOPPED,), needs=_SAVES),
    Fault(id="F14", name="storm of stop signals", inject=storm_of_signals, reasons=(_STOPPED,), needs=_SAVES),
    Fault(id="F16", name="supervisor killed", inject=kill_supervisor, bystander=True, quick=True, attempts_max=1),
    Fault(
        id="F16a",
        name="supervisor killed, then training",
        inject=kill_supervisor_then_training,
        bystander=True,
        reasons=(_DIED,),
    ),
    Fault(
        id="F17", name="training killed under two supervisors", inject=two_supervisors, bystander=True, reasons=(_DIED,)
    ),
    Fault(id="F18", name="leader frozen past its lease", inject=stale_leader, bystander=True, reasons=(_DIED,)),
    Fault(id="F20", name="server killed", inject=kill_server, bystander=True, quick=True, attempts_max=1),
    Fault(id="F22", name="server dead past every limit", inject=server_away, bystander=True, attempts_max=1),
    Fault(id="F26", name="server frozen for 3 s", inject=freeze_server, attempts_max=1),
    Fault(
        id="F37a",
        name="disk full at a checkpoint",
        inject=distress.fill_disk,
        quick=True,
        attempts_max=1,
        needs=frozenset({Need.CHECKPOINTS, Need.LARGE_CHECKPOINTS}),
    ),
    Fault(
        id="F38",
        name="newest checkpoint damaged",
        inject=damage_checkpoint,
        reasons=(_DIED,),
        intervals=2,
        needs=_SAVES,
    ),
    Fault(id="F51", name="everything frozen, as by a lid", inject=freeze_everything, quick=True, attempts_max=1),
    Fault(
        id="F59", name="cancelled while it dies", inject=cancel_and_kill, quick=True, attempts_max=1, states=CANCELLED
    ),
    Fault(id="C1", name="cancelled twice", inject=cancel_twice, attempts_max=1, states=CANCELLED),
    Fault(
        id="C2",
        name="paused and resumed",
        inject=pause_and_resume,
        reasons=(frozenset({Reason.PAUSED}),),
        needs=_SAVES,
    ),
)


def second_supervisor(scene: Scene) -> None:
    """Start another supervisor beside the system's own; it ends with the scene."""
    system = scene.system
    training = scene.worker().attempt_pid
    before = {beat.pid for beat in system.beats(Role.SUPERVISOR)}
    log = scene.stack.enter_context((system.home / "logs" / "supervisor-2.log").open("ab"))
    parent = os.getpid()
    process = subprocess.Popen(
        [sys.executable, "-m", "trackside", "--home", str(system.home), "supervisor"],
        env=system.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),  # noqa: PLW1509 -- nothing that takes a lock
    )  # fmt: skip
    scene.stack.callback(_stop, process)
    with frozen([training] if training else []):  # a short script would be over by then
        wait_until(
            lambda: {beat.pid for beat in system.beats(Role.SUPERVISOR)} - before,
            30.0, "the second supervisor is not seen",
        )  # fmt: skip


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


def _works(scene: Scene, number: int) -> bool:
    """Whether the attempt logs, or at least runs where the one before it has logged nothing."""
    entries = scene.entries()
    if entries.get(number, 0) > 1:
        return True
    silent = entries.get(number - 1, 0) <= 1
    return silent and scene.system.store.attempt(scene.job, number).state is AttemptState.RUNNING
