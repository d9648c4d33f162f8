"""`trackside demo`: two real trainings, one of them killed midway, and what became of them.

Everything runs in a home of its own, which is removed at the end. The numbers in the summary are read from the bus:
when the process was killed and when its end was on record, the first step after the restart, the steps done twice.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import trackside
from trackside.bus import beats, streams
from trackside.bus.client import Client, connect, now_ms
from trackside.cli.stops import Stops, taken
from trackside.cli.throwaway import end
from trackside.config import Settings
from trackside.errors import ServerError, TracksideError
from trackside.models import Attempt, Beat, Event, EventKind, Job, JobState, Reason
from trackside.processes import die_with_parent
from trackside.server import client_url
from trackside.store import Store
from trackside.upfile import Up, running

KILL_AT: Final = 0.43  # of the way through, between two checkpoints
_START_LIMIT_S: Final = 90.0
_RUN_LIMIT_S: Final = 240.0
_LOOK_S: Final = 0.1
# Steps and least time a step, so that both run for about a minute on any machine.
PROGRAMS: Final = (("digits.py", 4000, 10.0, 200), ("topics_lm.py", 600, 60.0, 50))


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The SIGKILL that the demo sent."""

    job: str
    attempt: int
    pid: int
    step: int
    at_ms: int  # by the server's clock


def examples_dir() -> Path:
    """Where the examples lie: inside an installed package, or beside it in a checkout."""
    package = Path(trackside.__file__).parent
    for folder in (package / "_examples", package.parents[1] / "examples"):
        if (folder / "digits.py").exists():
            return folder
    raise ServerError("the examples are not installed: run the demo from a checkout or a complete wheel")


def run(settings: Settings, *, keep: bool = False) -> int:
    """Run the demo; 0 if both trainings succeeded and the killed one was resumed."""
    console = Console(highlight=False)
    failed = False
    with taken() as stops:
        home = Path(tempfile.mkdtemp(prefix="trackside-demo-"))
        try:
            with _system(console, settings, home, stops) as ready:
                failed = not _Demo(console, home, ready).run()
        except TracksideError:
            failed = True
            raise
        except (KeyboardInterrupt, SystemExit):
            console.print("\nstopped: nothing of the demo is left running")
            return stops.exit_code
        finally:
            if failed or keep:
                console.print(f"[dim]the demo's home is kept: {home}[/dim]")
            else:
                shutil.rmtree(home, ignore_errors=True)
    return 1 if failed else 0


class _Demo:
    """One demonstration on a running system."""

    def __init__(self, console: Console, home: Path, ready: Up) -> None:
        self._console = console
        self._home = home
        self._settings = Settings.from_environ({"HOME": str(home)}, home=home)
        self._client: Client = connect(client_url(self._settings, "submitter"), name="demo")
        self._store = Store(self._client, by="cli:demo")
        self._cursor = streams.newest_event_id(self._client)
        self._kill: Kill | None = None
        if ready.dashboard_url:
            console.print(f"Dashboard: [bold cyan]{ready.dashboard_url}[/] (while the demo runs)")

    def run(self) -> bool:
        began = time.monotonic()
        jobs = [self._submit(*program) for program in PROGRAMS]
        victim = jobs[0]
        columns = (
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            bars = {
                job: progress.add_task(job.rsplit("-", 1)[0], total=steps, note="waiting")
                for job, (_, steps, _, _) in zip(jobs, PROGRAMS, strict=True)
            }
            while True:
                records = self._store.jobs(jobs)
                self._tell_events(progress)
                living = self._show(progress, bars, records)
                self._kill_once(progress, victim, living.get(victim))
                if all(job.state.terminal for job in records):
                    break
                if time.monotonic() - began > _RUN_LIMIT_S:
                    raise ServerError(f"the trainings did not end within {_RUN_LIMIT_S:g} s: see {self._home}/logs")
                time.sleep(_LOOK_S)
        self._summary(records, time.monotonic() - began)
        return self._kill is not None and all(job.state is JobState.SUCCEEDED for job in records)

    def _submit(self, script: str, steps: int, step_ms: float, every: int) -> str:
        path = examples_dir() / script
        options = ["--steps", str(steps), "--step-ms", str(step_ms), "--every", str(every)]
        answer = _trackside(self._home, "submit", str(path), "--name", path.stem, "--", *options)
        self._console.print(f"Submitted [bold]{path.name}[/]: {answer}")
        return answer

    def _tell_events(self, progress: Progress) -> None:
        found = streams.read_events(self._client, self._cursor, block_s=0.001)
        for entry, event in found:
            self._cursor = entry
            if event is not None and (line := _told(event)):
                progress.console.print(f"  [dim]{event.job}[/dim] {line}")

    def _show(self, progress: Progress, bars: dict[str, TaskID], records: list[Job]) -> dict[str, Beat]:
        living = {beat.job: beat for beat in beats.read(self._client).values() if beat and beat.job}
        for job in records:
            beat = living.get(job.id)
            done = beat.step if beat is not None and beat.attempt == job.attempt else None
            if job.state is JobState.SUCCEEDED:
                done = int(progress.tasks[bars[job.id]].total or 0)
            note = f"{job.state} · attempt {job.attempt}" if job.attempt else str(job.state)
            progress.update(bars[job.id], completed=done, note=note)
        return living

    def _kill_once(self, progress: Progress, victim: str, beat: Beat | None) -> None:
        if self._kill is not None or beat is None or beat.attempt_pid is None or not beat.step or not beat.total:
            return
        job = self._store.job(victim)
        if not job.checkpoints or beat.step < KILL_AT * beat.total or beat.attempt != job.attempt:
            return
        self._kill = Kill(
            job=victim, attempt=job.attempt, pid=beat.attempt_pid, step=beat.step, at_ms=now_ms(self._client)
        )
        os.kill(beat.attempt_pid, signal.SIGKILL)
        progress.console.print(
            f"  [bold red]SIGKILL[/] to the training process {beat.attempt_pid} near step {beat.step}"
        )

    def _summary(self, records: list[Job], seconds: float) -> None:
        table = Table(title=f"Demo finished in {seconds:.0f} s", title_justify="left")
        for column in ("job", "state", "attempts", "result"):
            table.add_column(column, overflow="fold")
        for job in records:
            ends = ", ".join(a.outcome.reason.value for a in self._store.attempts(job) if a.outcome)
            table.add_row(job.id, job.state.value, f"{job.attempt} ({ends})", _results(self._client, job.id))
        self._console.print(table)
        if self._kill is not None:
            self._console.print(_recovery(self._client, self._store, self._kill))


def _told(event: Event) -> str | None:
    """One line about an event worth a line in the demo."""
    data = event.data
    if event.kind is EventKind.ASSIGNED:
        return f"attempt {event.attempt} given to {data.get('slot')}"
    if event.kind is EventKind.RESTORED:
        return f"[green]attempt {event.attempt} resumed from step {data.get('resumed_step')}[/]"
    if event.kind is EventKind.ENDED and event.cause != Reason.SUCCEEDED:
        return f"[yellow]attempt {event.attempt} ended: {event.cause} {data.get('signal') or ''}[/]"
    if event.kind is EventKind.TRANSITION and event.old is JobState.RUNNING:
        return f"{event.old} → [bold]{event.new}[/] ({event.cause})"
    return None


def _results(client: Client, job_id: str) -> str:
    summary: dict[str, Any] = {}
    for _, _, batch in streams.batches(client, job_id):
        summary.update(batch.summary)
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in summary.items()
    )


def _recovery(client: Client, store: Store, kill: Kill) -> Table:
    """What the kill cost, from the records."""
    before, after = store.attempt(kill.job, kill.attempt), store.attempt(kill.job, kill.attempt + 1)
    lost_steps = _redone(before, after)
    table = Table(title="The killed training", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows = {
        "killed after step": before.outcome.last_step if before.outcome else None,
        "resumed from step": after.resumed_step,
        "steps lost (done again)": lost_steps,
        "seconds to notice": _seconds(kill.at_ms, before.ended_at_ms),
        "seconds to step again": _seconds(kill.at_ms, _first_point_ms(client, kill.job, after.number)),
        "attempts": store.job(kill.job).attempt,
    }
    for name, value in rows.items():
        table.add_row(name, "not known" if value is None else str(value))
    return table


def _redone(before: Attempt, after: Attempt) -> int | None:
    last = before.outcome.last_step if before.outcome else None
    return None if last is None or after.resumed_step is None else last - after.resumed_step


def _seconds(start_ms: int, end_ms: int | None) -> str | None:
    return None if end_ms is None else f"{max(0, end_ms - start_ms) / 1000:.2f}"


def _first_point_ms(client: Client, job_id: str, number: int) -> int | None:
    """When the attempt logged its first point, by the clock of the host that both run on."""
    for _, attempt, batch in streams.batches(client, job_id):
        if attempt == number and batch.at_ms:
            return batch.at_ms[0]
    return None


@contextmanager
def _system(console: Console, settings: Settings, home: Path, stops: Stops) -> Iterator[Up]:
    """A whole system in `home`, from `trackside up` to its orderly end."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
    env |= {"TRACKSIDE_STOP_GRACE_S": "5", "TRACKSIDE_DASHBOARD_PORT": str(settings.dashboard_port)}
    parent = os.getpid()
    command = [sys.executable, "-m", "trackside", "--home", str(home), "up", "--slots", f"cpu:{len(PROGRAMS)}"]
    (home / "logs").mkdir(parents=True)
    with (home / "logs" / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),  # noqa: PLW1509 -- we run one thread
        )  # fmt: skip
    try:
        stops.let_in()
        with console.status("Starting server, supervisor, trainer and dashboard …"):
            ready = _await_ready(process, Settings.from_environ({"HOME": str(home)}, home=home))
        console.print(f"Running: {ready.server}, supervisor, trainer with {len(PROGRAMS)} CPU slots, dashboard")
        yield ready
    finally:
        stops.held = True
        try:
            with console.status("Stopping …"):
                end(process, stops)
        finally:
            end(process, stops)  # where the terminal is gone, too


def _await_ready(process: subprocess.Popen[bytes], settings: Settings) -> Up:
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        up = running(settings)
        if up is not None:
            return up
        if process.poll() is not None:
            log = (settings.home / "logs" / "up.log").read_text(errors="replace")
            raise ServerError(f"`trackside up` ended with status {process.returncode}:\n{log[-2000:]}")
        time.sleep(0.05)
    raise ServerError(f"not everything served within {_START_LIMIT_S:g} s: see {settings.home}/logs")


def _trackside(home: Path, *words: str) -> str:
    """What a person would type; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
    command = [sys.executable, "-m", "trackside", "--home", str(home), *words]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise TracksideError(f"`trackside {words[0]}` failed: {answer.stderr.strip()}")
    return answer.stdout.strip()
