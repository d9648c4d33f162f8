"""A whole Trackside in a home of its own, started and used as a person would, for tests and benches.

`kill` ends only processes that the system itself says are its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from store_world import events_of, output_of
from trackside.bus import beats, streams
from trackside.bus.client import Client, connect, now_ms, without_password
from trackside.config import Settings
from trackside.models import Attempt, Beat, Event, Job, Role
from trackside.server import client_url
from trackside.store import Store
from trackside.testing import wait_until
from trackside.upfile import running

# A real training whose every step depends on the one before and on the random state.
TRAIN = """
import argparse, hashlib, time
import torch
import trackside

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--step-ms", type=float, default=10.0)
parser.add_argument("--every", type=int, default=20)
args = parser.parse_args()

run = trackside.init()
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
state = run.checkpointer(model=model, optimizer=optimizer, every=args.every)
for step in run.steps(args.steps):
    x = torch.randn(32, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
    time.sleep(args.step_ms / 1000)
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
run.summary["digest"] = hashlib.sha256(weights).hexdigest()
print("finished", flush=True)
"""


class System:
    """A running system, seen through its bus and its command line."""

    def __init__(self, home: Path, process: subprocess.Popen[bytes], env: dict[str, str]) -> None:
        self.home = home
        self.process = process
        self.env = env
        self.settings = Settings.from_environ(env)
        self.client: Client = connect(client_url(self.settings, "submitter"))
        self.store = Store(self.client, by="cli:test")

    def cli(self, *words: str, code: int = 0) -> str:
        """Run a command as a person would; returns what it prints."""
        answer = self.command(*words)
        assert answer.returncode == code, f"{words} exited {answer.returncode}:\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout.strip()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command, whatever it answers."""
        return subprocess.run(
            [sys.executable, "-m", "trackside", *words], env=self.env, capture_output=True, text=True, timeout=60
        )

    def submit(self, script: Path, *options: str, args: tuple[str, ...] = ()) -> str:
        return self.cli("submit", str(script), *options, "--", *args)

    def job(self, job_id: str) -> Job:
        return self.store.job(job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        return self.store.attempts(self.job(job_id))

    def beat(self, role: Role, job_id: str | None = None) -> Beat | None:
        """The beat of the living process of that role, or of the worker that runs the job."""
        found = [beat for beat in beats.read(self.client).values() if beat is not None and beat.role is role]
        if job_id is not None:
            found = [beat for beat in found if beat.job == job_id and beat.attempt == self.job(job_id).attempt]
        return found[0] if found else None

    def stepping(self, job_id: str, step: int, timeout_s: float = 40.0) -> Beat:
        """Wait until the job has completed `step`; returns its worker's beat."""

        def reached() -> Beat | None:
            beat = self.beat(Role.WORKER, job_id)
            return beat if beat is not None and (beat.step or 0) >= step else None

        beat = wait_until(reached, timeout_s, f"{job_id} did not reach step {step}: {self.job(job_id)}")
        assert beat is not None
        return beat

    def ended(self, job_id: str, timeout_s: float = 60.0) -> Job:
        """Wait until the job is in a terminal state."""
        wait_until(lambda: self.job(job_id).state.terminal, timeout_s, f"{job_id} did not end: {self.job(job_id)}")
        return self.job(job_id)

    def kill(self, pid: int, signum: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process of this system; returns the server's time just before, in ms."""
        at_ms = now_ms(self.client)
        os.kill(pid, signum)
        return at_ms

    def events(self, job_id: str) -> list[Event]:
        return events_of(self.store, job_id)

    def series(self, job_id: str, name: str) -> dict[int, Any]:
        """The canonical series: for each step the highest attempt's value."""
        found: dict[int, tuple[int, Any]] = {}
        for _, number, batch in streams.batches(self.client, job_id):
            for step, value in zip(batch.steps, batch.series.get(name, ()), strict=False):
                if value is not None and number >= found.get(step, (0, None))[0]:
                    found[step] = (number, value)
        return {step: value for step, (_, value) in sorted(found.items())}

    def summary(self, job_id: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for _, _, batch in streams.batches(self.client, job_id):
            merged.update(batch.summary)
        return merged

    def output(self, job_id: str) -> str:
        return output_of(self.store, job_id)


@contextmanager
def running_system(home: Path, *options: str, **settings: str) -> Iterator[System]:
    """`trackside up` in `home`; `settings` are further TRACKSIDE_ variables in lower case without the prefix."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
    env["TRACKSIDE_HOME"] = str(home)
    env |= {f"TRACKSIDE_{name.upper()}": value for name, value in settings.items()}
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.log").open("ab") as log:
        command = [sys.executable, "-m", "trackside", "up", *options]
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def ready() -> bool:
            assert process.poll() is None, f"trackside up ended:\n{(home / 'up.log').read_text()}"
            return running(Settings.from_environ(env)) is not None

        wait_until(ready, 60.0, f"trackside up was not ready; see {home / 'up.log'}")
        yield System(home, process, env)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()


@contextmanager
def another_host(system: System, home: Path, name: str) -> Iterator[None]:
    """A trainer of another host on the same bus; it shares the checkpoints if the system's data folder is set."""
    url = without_password(client_url(system.settings, "trainer"))
    env = {**system.env, "TRACKSIDE_HOME": str(home), "TRACKSIDE_HOST": name, "TRACKSIDE_REDIS_URL": url}
    env["TRACKSIDE_REDIS_PASSWORD_FILE"] = str(system.home / "secrets" / "trainer")
    command = [sys.executable, "-m", "trackside", "trainer", "--slots", "cpu:1"]
    with (system.home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        slot = f"{name}-cpu0"
        wait_until(lambda: beats.read(system.client).get(f"{Role.WORKER}:{slot}"), 60.0, f"{name} has no worker")
        wait_until(lambda: slot in {each.id for each in system.store.slots()}, 20.0, f"{slot} is not on the books")
        yield
    finally:
        process.terminate()
        process.wait(60)


def host_pids(system: System, host: str) -> list[int]:
    """The agent, workers and training processes that say they are of that host."""
    found = [beat for beat in beats.read(system.client).values() if beat is not None and beat.host == host]
    trainer = [beat for beat in found if beat.role in (Role.AGENT, Role.WORKER)]
    return [pid for beat in trainer for pid in (beat.pid, beat.attempt_pid) if pid is not None]


def send(pids: list[int], signum: signal.Signals) -> None:
    """Send a signal to each of the system's own processes that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
