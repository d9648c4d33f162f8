"""A seeded bus and ways to run the command line on it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from typer.testing import CliRunner

from store_world import moved
from trackside.bus import beats, streams
from trackside.bus.client import Client, connect
from trackside.cli.app import app
from trackside.models import (
    Batch,
    Beat,
    CheckpointRef,
    EventKind,
    Failure,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
    Role,
    Slot,
)
from trackside.store import Store

HOSTILE_NAME = "e\x1b[31mvil [red]x[/red] \x1b]0;owned\x07\u202eend"
SPEC = JobSpec(program=Program(kind="script", target="train.py", argv=("--lr", "0.1")), params={"depth": 3})
SLOT = Slot(id="box-cpu0", host="box", kind="cpu", storage="data", threads=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.out)


def start(home: Path, *args: str) -> subprocess.Popen[str]:
    """Run a command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trackside", "--home", str(home), *args],
        env={**os.environ, "COLUMNS": "80"}, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def terminal_output(world: World, *args: str) -> str:
    """What a command shows on a terminal of 80 columns."""
    argv = [sys.executable, "-m", "trackside", "--home", str(world.home), *args]
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS="80", LINES="30", TERM="xterm")
        os.execv(sys.executable, argv)  # noqa: S606 -- no shell
    drawn = b""
    try:
        while piece := os.read(terminal, 65536):
            drawn += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return drawn.decode().replace("\r\n", "\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A home with a running server, and a store to write to it as the supervisor would."""

    home: Path
    client: Client
    store: Store

    @classmethod
    def at(cls, home: Path, urls: Mapping[str, str]) -> World:
        client = connect(urls["supervisor"])
        return cls(home=home, client=client, store=Store(client, by="test:world"))

    def run(self, *args: str, code: int | None = 0) -> Result:
        """Run a command in this process; fails if the exit code is another."""
        answer = CliRunner().invoke(app, ["--home", str(self.home), *args], env={"COLUMNS": "80"})
        result = Result(code=answer.exit_code, out=answer.stdout, err=answer.stderr)
        if answer.exception is not None and not isinstance(answer.exception, SystemExit):
            raise answer.exception
        assert code is None or result.code == code, result
        return result

    def start(self, *args: str) -> subprocess.Popen[str]:
        return start(self.home, *args)

    def queued(self, job_id: str, name: str = "queued") -> Job:
        return self.store.submit(job_id, name, SPEC)

    def running(self, job_id: str, name: str = "digits", slot: Slot = SLOT) -> Job:
        """A job whose first attempt has done three of a hundred steps, and whose worker beats."""
        self.store.register_slot(slot)
        self.store.submit(job_id, name, SPEC)
        self.store.assign(job_id, slot, lambda _pipe, _job: None)
        self.store.claim(job_id, 1, worker_pid=5)
        self.store.note_attempt(job_id, 1, EventKind.NOTE, "sized", total_steps=100, pid=77)
        batch = Batch(
            steps=(1, 2, 3), at_ms=(1, 2, 3), series={"loss": (3.0, 2.0, "NaN"), "acc": (None, 0.5, 0.6)}, total=100
        )
        streams.ship_batch(self.client, job_id, 1, 10, batch)
        streams.ship_output(self.client, job_id, 1, 20, b"hello \x1b[31mred\x1b[0m\nline 2\n")
        reference = CheckpointRef(name="step-2-1", step=2, attempt=1, digest="d" * 64, storage="data", bytes=123456)
        beat = Beat(
            role=Role.WORKER, name=slot.id, host=slot.host, pid=5, started_at_ms=1, at_ms=1, slot=slot.id, job=job_id,
            attempt=1, attempt_pid=77, step=3, total=100, steps_per_s=12.5, cpu_pct=99.1, rss_mib=512.3,
        )  # fmt: skip
        beats.publish(self.client, beat, 600)
        return self.store.accept_checkpoint(job_id, 1, reference)

    def failed(self, job_id: str, name: str = "broken") -> Job:
        """A job whose only attempt ended with an exception."""
        slot = Slot(id="box-cpu1", host="box", kind="cpu", storage="data")
        self.store.register_slot(slot)
        self.store.submit(job_id, name, SPEC)
        self.store.assign(job_id, slot, lambda _pipe, _job: None)
        self.store.claim(job_id, 1, worker_pid=6)
        failure = Failure(type="ValueError", message="bad", traceback="Traceback\n\x1b[2J  x\nValueError: bad\n")
        outcome = Outcome(
            reason=Reason.USER_ERROR, detail="ValueError: bad", exit_code=1, first_step=1, last_step=7, failure=failure
        )
        self.store.end_attempt(job_id, 1, outcome)
        return self.finish(job_id, JobState.FAILED, "the program failed and has no retries left")

    def finish(self, job_id: str, state: JobState, detail: str | None = None) -> Job:
        return moved(self.store, job_id, state, detail)
