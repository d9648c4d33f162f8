"""A whole Trackside in a throwaway home: started as a person would, disturbed on purpose, and stopped in order.

Everything here bears a server that is away for a while: it asks again, for a bounded time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from trackside.bus import beats
from trackside.bus.client import connect
from trackside.cli.remembering import RememberingStore
from trackside.cli.stops import Stops
from trackside.config import Settings
from trackside.errors import NotFound, ServerError, TracksideError
from trackside.ids import new_job_id
from trackside.models import Beat, Job, JobState, Role
from trackside.oracle import Operation
from trackside.processes import die_with_parent
from trackside.retry import until_reachable
from trackside.server import client_url
from trackside.testing import wait_until
from trackside.upfile import running

T = TypeVar("T")
_START_LIMIT_S: Final = 90.0
_STOP_LIMIT_S: Final = 60.0
_OUTAGE_LIMIT_S: Final = 30.0
# Times as short as a busy laptop keeps up with, so that a fault costs seconds and not minutes.
QUICK: Final[Mapping[str, str]] = {
    "beat_s": "0.25",
    "beat_ttl_s": "1.5",
    "silent_margin_s": "0.5",
    "lease_ttl_s": "1.5",
    "backoff_first_s": "0.2",
    "backoff_max_s": "2",
    "stop_grace_s": "4",
    "breaker_after": "1000",  # a drill harms many jobs on two slots, and that is not the slots' doing
}


class TooLate(ServerError):
    """A job was over before something could be done to it."""


class Throwaway:
    """A running system of one home, seen through its bus."""

    def __init__(
        self, process: subprocess.Popen[bytes], env: dict[str, str], home: Path, log: Path, url: str | None = None
    ) -> None:
        """`url`: where the observer connects, None: as the system itself does."""
        self.process, self.env, self.home, self.log = process, env, home, log
        self.settings = Settings.from_environ(env, home=home)
        self.client = connect(url or client_url(self.settings, "submitter"), name="drill")
        self.store = RememberingStore(self.client, by="cli:drill")

    def trackside(self, *words: str) -> str:
        """Run a command as a person would; returns what it prints, raises TracksideError with what it says."""
        command = [sys.executable, "-m", "trackside", "--home", str(self.home), *words]
        answer = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=120)
        if answer.returncode != 0:
            raise TracksideError(f"`trackside {words[0]}` failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout.strip()

    def submit(self, script: Path, *argv: str, options: tuple[str, ...] = ()) -> str:
        """Submit a script; returns the job's id."""
        at_ms, job_id = now_ms(), self.trackside("submit", str(script), *options, "--", *argv)
        self.store.operations.append(Operation(at_ms=at_ms, what="submit", job=job_id))
        return job_id

    def again(self, job: Job, **changes: Any) -> str:
        """Submit a job's own specification once more, with changes to it; returns the new job's id."""
        job_id, spec = new_job_id(job.name), replace(job.spec, **changes)
        return self.ask(lambda: self.store.submit(job_id, job.name, spec)).id

    def ask(self, question: Callable[[], T]) -> T:
        """An answer of the bus, waiting out a server that is away."""
        return until_reachable(question, limit_s=_OUTAGE_LIMIT_S)

    def job(self, job_id: str) -> Job:
        return self.ask(lambda: self.store.job(job_id))

    def beats(self, role: Role) -> list[Beat]:
        """The living processes of one kind."""
        found = self.ask(lambda: beats.read(self.client))
        return [beat for beat in found.values() if beat is not None and beat.role is role]

    def beat(self, role: Role) -> Beat:
        """The living process of one kind; of several supervisors the leading one."""
        found = sorted(self.beats(role), key=lambda beat: beat.leader is not True)
        if not found:
            raise NotFound(f"no {role} shows a sign of life: see {self.home / 'logs'}")
        return found[0]

    def worker_of(self, job_id: str) -> Beat | None:
        """The beat of the worker that runs the job's current attempt."""
        job = self.job(job_id)
        found = [beat for beat in self.beats(Role.WORKER) if beat.job == job_id and beat.attempt == job.attempt]
        return found[0] if found else None

    def server_pid(self) -> int:
        return self.beat(Role.LAUNCHER).children["redis"]

    def stepping(self, job_id: str, step: int, limit_s: float = 60.0) -> Beat:
        """Wait until the job has completed `step` or more; returns its worker's beat, which knows its process."""

        def reached() -> Beat | None:
            beat = self.worker_of(job_id)
            if beat is not None and beat.attempt_pid is not None and (beat.step or 0) >= step:
                return beat
            job = self.job(job_id)
            if job.state.terminal:
                kind = TooLate if job.state is JobState.SUCCEEDED else ServerError
                raise kind(f"{job_id} ended {job.state} ({job.detail}) before step {step} was seen")
            return None

        beat = wait_until(reached, limit_s, f"{job_id} did not reach step {step}", every_s=0.03)
        assert beat is not None  # noqa: S101 -- wait_until returns true values only
        return beat

    def ended(self, job_id: str, limit_s: float = 90.0) -> Job:
        """Wait until the job is in a terminal state; raises AssertionError when it is not in time."""
        wait_until(lambda: self.job(job_id).state.terminal, limit_s, f"{job_id} did not end", every_s=0.03)
        return self.job(job_id)

    def reaches(self, job_id: str, state: JobState, limit_s: float = 30.0) -> Job:
        """Wait until the job is in `state`."""
        wait_until(lambda: self.job(job_id).state is state, limit_s, f"{job_id} did not become {state}")
        return self.job(job_id)


def now_ms() -> int:
    """The time of this host, which is the server's too here; the server itself may be away when we ask."""
    return time.time_ns() // 1_000_000


@contextmanager
def throwaway(
    home: Path,
    *,
    slots: str,
    settings: Mapping[str, str] | None = None,
    url: str | None = None,
    stops: Stops | None = None,
) -> Iterator[Throwaway]:
    """`trackside up` in `home` until the block ends; `settings` are TRACKSIDE_ variables, lower case, no prefix."""
    stops = stops or Stops()
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
    env |= {f"TRACKSIDE_{name.upper()}": value for name, value in (settings or {}).items()}
    command = [sys.executable, "-m", "trackside", "--home", str(home), "up", "--slots", slots, "--no-dashboard"]
    parent = os.getpid()
    log = home / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),  # noqa: PLW1509 -- we run one thread
        )  # fmt: skip
    try:
        stops.let_in()
        await_ready(process, Settings.from_environ(env, home=home), log)
        yield Throwaway(process, env, home, log, url)
    finally:
        stops.held = True
        end(process, stops)


def await_ready(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> None:
    """Return once everything serves; raises ServerError with the log's end if it does not."""
    deadline_s = time.monotonic() + _START_LIMIT_S
    while running(settings) is None:
        if process.poll() is not None:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise ServerError(f"`trackside up` ended with status {process.returncode}:\n{text[-2000:]}")
        if time.monotonic() > deadline_s:
            raise ServerError(f"not everything served within {_START_LIMIT_S:g} s: see {settings.home / 'logs'}")
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes], stops: Stops) -> None:
    """Stop the system; one that does not stop in time is hurried, and nothing stays behind either way."""
    if process.poll() is not None:
        return
    stops.hurry = process.terminate
    process.send_signal(signal.SIGCONT)  # a drill may have stopped it
    process.terminate()
    try:
        process.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()  # the second one makes it kill what is left
        process.wait(_STOP_LIMIT_S)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(_STOP_LIMIT_S)
