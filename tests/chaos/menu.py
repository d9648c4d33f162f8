"""What may strike in a soak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.beside import HOST, Beside
from trackside.cli import distress, faults
from trackside.cli.scene import Harm, Scene, frozen
from trackside.cli.throwaway import now_ms
from trackside.errors import ServerError
from trackside.models import Role
from trackside.processes import look


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of fault, and on which host its victim must run (None: any)."""

    inject: Callable[[Scene], Harm]
    host: str | None = None


def menu(it: Beside, poison: Path) -> dict[str, Kind]:
    """What may strike, by name."""
    return {
        "training killed": Kind(inject=faults.kill_training),
        "worker killed": Kind(inject=faults.kill_worker),
        "agent killed": Kind(inject=faults.kill_agent),
        "host killed": Kind(inject=faults.kill_host),
        "supervisor killed": Kind(inject=faults.kill_supervisor),
        "leader frozen": Kind(inject=freeze_leader),
        "server killed": Kind(inject=faults.kill_server),
        "server frozen": Kind(inject=faults.freeze_server),
        "training frozen": Kind(inject=faults.freeze_training),
        "training hangs": Kind(inject=hang_training),
        "loss is no number": Kind(inject=lambda scene: spoil_loss(scene, poison)),
        "trainer stopped in order": Kind(inject=stop_trainer),
        "storm of stop signals": Kind(inject=faults.storm_of_signals),
        "host cut off": Kind(inject=it.cut_off, host=HOST),
        "answers to a host lost": Kind(inject=it.keep_answers, host=HOST),
        "reports of a host lost": Kind(inject=it.keep_requests, host=HOST),
        "connections of a host reset": Kind(inject=it.reset, host=HOST),
    }


def freeze_leader(scene: Scene) -> Harm:
    """The leader sleeps past its lease, and wakes beside its successor."""
    leader = scene.system.beat(Role.SUPERVISOR)
    harm = Harm(at_ms=now_ms())
    with frozen([leader.pid]):
        time.sleep(2 * scene.system.settings.lease_ttl_s)
    return harm


def hang_training(scene: Scene) -> Harm:
    """It stands still for good: its worker has to notice, and end it."""
    distress.stop_in_a_step(scene)
    return Harm(at_ms=now_ms())


def stop_trainer(scene: Scene) -> Harm:
    """An orderly stop is to cost nothing, so it waits while a training hangs: that one would be killed, unsaved."""
    trainings = [beat.attempt_pid for beat in scene.system.beats(Role.WORKER) if beat.attempt_pid is not None]
    if any((found := look(pid)) is not None and found.state == "T" for pid in trainings):
        raise ServerError("a training stands still and cannot stop in order: wait for its end")
    return faults.stop_trainer(scene)


def spoil_loss(scene: Scene, poison: Path) -> Harm:
    """The next step's loss is NaN, and so are the weights after it."""
    scene.worker()
    harm = Harm(at_ms=now_ms())
    (poison / scene.job).touch()
    return harm
