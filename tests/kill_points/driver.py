"""Starts attempts as a worker does, kills them at chance moments, and compares what the job ends with.

This process is the preloaded parent: attempts are forked from it by the trainer's own code, so that hundreds of kills
take minutes. A kill is SIGKILL to the attempt's whole session, loader processes too.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from attempts import context, records
from trackside import processes
from trackside.sdk.context import Program, ResumePoint
from trackside.sdk.page import Command, ControlPage
from trackside_trainer import launch

MODELS: Final = ("mlp", "cnn", "transformer")
SCRIPT: Final = Path(__file__).with_name("training.py")  # not imported: the parent must not have its threads
STEPS: Final = 60
EVERY: Final = 4
LIMIT_S: Final = 120.0
_KILLS_A_JOB: Final = 5
_AT_START: Final = 0.15  # the share of kills that come at a chance moment from the fork on, whatever it does then
_UNTOLD: Final = 0.2  # the share of attempts whose predecessor's newest checkpoint never reached the bus
_START_S: Final = 0.4
_LATER_S: Final = 0.03  # longer than a step and a save, so that kills come anywhere in them


class Unequal(AssertionError):
    """A job that did not end as the undisturbed one did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What must not depend on how often training was cut."""

    state: str  # SHA-256 of all that is left at the end
    series: str  # SHA-256 of every (step, loss, lr), and of what steps gave that were done again and came out otherwise
    parts: dict[str, str]  # what `state` is made of, to name what differs
    points: tuple[tuple[int, float, float], ...]

    @property
    def hashes(self) -> tuple[str, str]:
        return self.state, self.series

    def difference(self, other: Result) -> str:
        """Where it differs, for people."""
        step = next((a[0] for a, b in zip(self.points, other.points, strict=False) if a != b), None)
        parts = [name for name in self.parts if self.parts[name] != other.parts.get(name)]
        return f"first different step {step}, different parts: {', '.join(parts) or 'none'}"


@dataclass(kw_only=True, slots=True)
class Tally:
    """What the kills of one model with one number of loader workers did."""

    kills: int = 0
    jobs: int = 0
    equal_kills: int = 0  # of jobs that ended equal
    starting: int = 0  # kills before the first step of the attempt
    saving: int = 0  # kills that left an unfinished checkpoint
    redone: list[int] = field(default_factory=list)  # steps, a kill each
    unequal: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A running attempt."""

    pid: int
    pidfd: int
    page: ControlPage
    began_s: float

    def ended(self, within_s: float = 0.0) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def wait(self) -> int:
        """The exit code, negative for a signal; everything that descends from the attempt is gone afterwards."""
        if not self.ended(LIMIT_S):
            self.kill()
            raise AssertionError(f"the attempt did not end within {LIMIT_S} s")
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        assert processes.kill_until_gone(lambda: processes.descendants(os.getpid()), limit_s=5.0) == []
        processes.reap()
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):  # right after the fork it has no session yet
            os.killpg(self.pid, signal.SIGKILL)


class Job:
    """One job's folder, and its attempts one after another."""

    def __init__(self, root: Path, model: str) -> None:
        self.root, self.model = root, model
        self.attempts = len(list(root.glob("attempts/*")))
        (root / "work").mkdir(parents=True, exist_ok=True)
        (root / "work" / "train.py").write_bytes(SCRIPT.read_bytes())

    def start(self, *options: str, untold: int = 0) -> Attempt:
        """Fork the next attempt; it is told the checkpoints that the journals told of, as the bus would tell it.

        The newest `untold` ones are on the disk, but never reached the bus.
        """
        resume = self._resume()[untold:]
        self.attempts += 1
        folder = self.root / "attempts" / str(self.attempts)
        folder.mkdir(parents=True)
        argv = (self.model, "--steps", str(STEPS), "--every", str(EVERY), *options)
        program = Program(kind="script", target="train.py", argv=argv)
        files = self.root / "files"
        made = context(folder, self.attempts, root=self.root, files_dir=files, program=program, resume=tuple(resume))
        made.to_file(folder / "attempt.json")
        page = ControlPage.create(folder / "page")
        if resume:
            page.accepted = resume[0].step
        began_s = time.monotonic()
        started = launch.start(made, folder / "attempt.json", output=folder / "output.log", python=None, home=self.root)
        return Attempt(pid=started.pid, pidfd=started.pidfd, page=page, began_s=began_s)

    def finish(self, *options: str) -> Result:
        """Run an attempt to its end."""
        attempt = self.start(*options)
        code = attempt.wait()
        assert code == 0, f"exit code {code}:\n{self.output()}"
        return self.result()

    def result(self) -> Result:
        points: dict[int, tuple[int, float, float]] = {}
        otherwise = []
        state = ""
        for record in self.records():
            if record["k"] == "m":
                step, point = record["s"], (record["s"], record["m"]["loss"], record["m"]["lr"])
                if points.setdefault(step, point) != point:
                    otherwise.append(point)
                points[step] = point
            elif record["k"] == "summary":
                state = record["m"]["state"]
        ordered = tuple(points[step] for step in sorted(points))
        assert [point[0] for point in ordered] == list(range(1, STEPS + 1)), "a step is missing"
        return Result(
            state=state,
            series=hashlib.sha256(repr((ordered, otherwise)).encode()).hexdigest(),
            parts=json.loads((self.root / "files" / "final.json").read_text()),
            points=ordered,
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """All journal lines, in the order of the attempts."""
        for number in range(1, self.attempts + 1):
            yield from records(self.root / "attempts" / str(number) / "journal.jsonl")

    def output(self) -> str:
        return (self.root / "attempts" / str(self.attempts) / "output.log").read_text()[-3000:]

    def unfinished(self) -> set[str]:
        return {path.name for path in (self.root / "checkpoints").glob(".step-*")}

    def _resume(self) -> list[ResumePoint]:
        told = [record for record in self.records() if record["k"] == "ck"]
        return [ResumePoint(name=r["name"], step=r["s"], digest=r["digest"]) for r in reversed(told)]


def cut(job: Job, rng: random.Random, after_step: int, tally: Tally, *options: str) -> bool:
    """Kill the job's next attempt at a chance moment; False if it came to its end before that."""
    attempt = job.start(*options, untold=int(rng.random() < _UNTOLD))
    if rng.random() < _AT_START:
        moment_s = attempt.began_s + rng.uniform(0.0, _START_S)
    else:
        while attempt.page.completed < after_step and not attempt.ended(0.001):
            assert time.monotonic() < attempt.began_s + LIMIT_S, f"step {after_step} never came:\n{job.output()}"
        moment_s = time.monotonic() + rng.uniform(0.0, _LATER_S)
    ended = attempt.ended(max(0.0, moment_s - time.monotonic()))
    if not ended:
        attempt.kill()
    code = attempt.wait()
    if code == 0:
        return False
    assert code == -signal.SIGKILL, f"exit code {code}:\n{job.output()}"
    tally.kills += 1
    tally.starting += attempt.page.first is None
    tally.saving += bool(job.unfinished())
    return True


def try_kills(root: Path, model: str, workers: str, kills: int, seed: int, undisturbed: Result) -> Tally:
    """Kill `kills` times, several times a job, and compare how each job ends.

    `workers` is the number of loader processes, or "0/2" for one that changes from attempt to attempt.
    """
    rng = random.Random(f"{seed} {model} {workers}")
    tally = Tally()
    numbers = workers.split("/")
    while tally.kills < kills:
        job = Job(root / f"{model}-{workers.replace('/', 'to')}-{tally.jobs}", model)
        before = tally.kills
        wanted = min(_KILLS_A_JOB, kills - before)
        over = False
        for after_step in sorted(rng.randrange(STEPS + 1) for _ in range(wanted)):
            if not over:
                over = not cut(job, rng, after_step, tally, "--workers", numbers[job.attempts % len(numbers)])
        result = job.result() if over else job.finish("--workers", numbers[job.attempts % len(numbers)])
        tally.jobs += 1
        tally.redone += redone(job)
        if result.hashes == undisturbed.hashes:
            tally.equal_kills += tally.kills - before
        else:
            tally.unequal.append(f"{job.root.name}: {result.difference(undisturbed)}")
    return tally


def redone(job: Job) -> list[int]:
    """How many steps each attempt but the last had done beyond where the next one began."""
    found = []
    reached = 0
    for number in range(1, job.attempts + 1):
        page = ControlPage.open(job.root / "attempts" / str(number) / "page")
        if page.first is not None:
            if number > 1:
                found.append(max(0, reached - (page.first - 1)))
            reached = max(page.completed, page.first - 1)
        page.close()
    return found


def stop_in_order(job: Job, after_step: int) -> None:
    """Run an attempt until `after_step` is done, and have it save and stop."""
    attempt = job.start("--step-ms", "50")  # slow, so that it is asked before its end
    while attempt.page.completed < after_step and not attempt.ended(0.001):
        continue
    attempt.page.command = Command.PREEMPT
    code = attempt.wait()
    assert code == 75, f"exit code {code}:\n{job.output()}"
