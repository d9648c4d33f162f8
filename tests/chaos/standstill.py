"""Whether a training went on while nobody could reach the server: by its own journal, and its own clock."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import now_ms


@dataclass(kw_only=True, slots=True)
class Blind:
    """Does a fault, and looks afterwards whether the training stood still meanwhile."""

    inject: Callable[[Scene], Harm]
    broken: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def __call__(self, scene: Scene) -> Harm:
        attempt = scene.system.job(scene.job).attempt
        journal = journal_of(scene.system.home, scene.job, attempt)
        harm = self.inject(scene)
        until_ms = now_ms()
        times = step_times(journal)
        self.broken += standstill(times, harm.at_ms, until_ms)
        seen = [at for at in times if harm.at_ms <= at <= until_ms]
        longest = max((after - before for before, after in itertools.pairwise(seen)), default=0)
        self.figures.append(
            f"{len(seen)} steps in {until_ms - harm.at_ms} ms without a server, {longest} ms the longest"
        )
        return harm


def journal_of(home: Path, job_id: str, attempt: int) -> Path:
    return home / "jobs" / job_id / "attempts" / str(attempt) / "journal.jsonl"


def step_times(journal: Path) -> list[int]:
    """When each step told its numbers, in ms by the training's own clock."""
    found: list[int] = []
    *lines, _ = journal.read_text(errors="replace").split("\n")  # the last one is empty, or being written
    for line in lines:
        record: dict[str, Any] = json.loads(line)
        if record.get("k") == "m":
            found.append(int(record["t"]))
    return found


def standstill(times: list[int], from_ms: int, until_ms: int) -> list[str]:
    """What shows that it stood still: a hole of half the time, which no busy machine alone explains.

    How fast it went is for the bench to say.
    """
    hole_ms = (until_ms - from_ms) // 2
    marks = [from_ms, *(at for at in times if from_ms <= at <= until_ms), until_ms]
    longest, at = max((after - before, before) for before, after in itertools.pairwise(marks))
    if longest <= hole_ms:
        return []
    return [
        f"no step for {longest} ms, {at - from_ms} ms after the server was gone; it was for {until_ms - from_ms} ms"
    ]
