"""A training process that hangs is found, asked where it hangs, and ended; one that only works is left alone."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from store_world import events_of, moved
from trackside.bus.client import now_ms
from trackside.cli.app import app
from trackside.models import EventKind, Job, JobState, Outcome, Reason
from trackside.sdk.page import ControlPage
from trackside.server import EmbeddedServer, ServerBinary
from trackside.testing import wait_until
from trainer_harness import Trainer, lives, server_and_trainer, steps_script

LIMIT_S = 1.0  # learned from steps of 10 ms: the floor, or more where a busy machine makes longer ones of them
GRACE_S = 1.0
SLOWER = "steps have become slow: "  # a busy machine makes them so, and that is told of any run


@pytest.fixture(scope="module")
def both(server_binary: ServerBinary) -> Iterator[tuple[EmbeddedServer, Trainer]]:
    settings = {
        "stop_grace_s": GRACE_S,
        "stall_limit_s": 30,
        "stall_floor_s": LIMIT_S,
        "startup_limit_s": 4,
        "save_limit_s": 30,
    }
    with server_and_trainer(server_binary, **settings) as both:
        yield both


@pytest.fixture(scope="module")
def trainer(both: tuple[EmbeddedServer, Trainer]) -> Trainer:
    return both[1]


HANGS = """
import itertools, threading, time, trackside
run = trackside.init()
lock = threading.Lock()
def wait_for_a_lock():
    lock.acquire()
    lock.acquire()
def hold_the_interpreter():
    sum(itertools.repeat(0))
for step in run.steps(1000):
    time.sleep(0.01)
    if step == 50:
        {how}
"""


def notes(trainer: Trainer, job: Job) -> list[str]:
    """What was remarked of a job; all of it warnings."""
    found = [event for event in events_of(trainer.store, job.id) if event.cause == "note"]
    assert {(event.kind, event.data.get("level")) for event in found} <= {(EventKind.NOTE, "warning")}
    return [event.data["text"] for event in found]


def no_hang_was_seen(trainer: Trainer, job: Job) -> bool:
    return all(text.startswith(SLOWER) for text in notes(trainer, job))


def attempt_dir(trainer: Trainer, job: Job) -> Path:
    return trainer.home / "jobs" / job.id / "attempts" / "1"


def ended_after_hang(trainer: Trainer, job: Job) -> tuple[Outcome, float]:
    """The outcome, and the seconds from the last step, as its process noted it, to that being on record."""
    outcome, ended_s = trainer.ended(job, 40), time.monotonic()
    page = ControlPage.open(attempt_dir(trainer, job) / "page")
    last_ns = page.boundary_ns
    page.close()
    assert last_ns is not None, "it noted no step"
    return outcome, ended_s - last_ns / 1e9


@pytest.mark.parametrize("how", ["wait_for_a_lock()", "hold_the_interpreter()"])
def test_a_hung_process_is_dumped_asked_and_killed(trainer: Trainer, how: str) -> None:
    job = trainer.assign(HANGS.format(how=how))

    outcome, took_s = ended_after_hang(trainer, job)

    assert (outcome.reason, outcome.signal, outcome.last_step) == (Reason.STALLED, "SIGKILL", 49)
    assert re.match(r"no step for [\d.]+ s \(limit [\d.]+ s, learned", outcome.detail or "")
    assert "it did not stop within its grace and was killed" in (outcome.detail or "")
    assert any(text.startswith("stalled: no step for ") for text in notes(trainer, job))
    state, stacks, *_ = outcome.evidence
    assert state.startswith("the process was ")
    assert how.rstrip("()") in stacks
    assert "launch.py" not in stacks, "what is below the program's own frames"
    assert "[trackside] no step for" in trainer.output(job)
    assert how.rstrip("()") in trainer.output(job)
    assert took_s > LIMIT_S + GRACE_S, "it was not given its limit and its grace"


def test_a_stopped_process_goes_on_to_its_boundary_and_stops_there(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(100_000, 0.01))
    pid = trainer.running(job, step=30)
    os.kill(pid, signal.SIGSTOP)

    outcome = trainer.ended(job, 20)

    assert (outcome.reason, outcome.exit_code) == (Reason.STALLED, 75)
    assert "stopped by a signal" in outcome.evidence[0]
    assert "; the process was stopped by a signal (SIGSTOP); asked to stop" in (outcome.detail or "")
    assert not lives(pid)


def test_a_process_that_is_stopped_again_and_again_is_killed(trainer: Trainer) -> None:
    script = HANGS.format(how="import os, signal\n        while True: os.kill(os.getpid(), signal.SIGSTOP)")
    outcome, _ = ended_after_hang(trainer, trainer.assign(script))
    assert (outcome.reason, outcome.signal) == (Reason.STALLED, "SIGKILL")


def test_a_script_that_never_comes_to_its_first_step_is_judged_by_the_limit_for_starting(trainer: Trainer) -> None:
    outcome = trainer.ended(trainer.assign("import time, trackside\ntrackside.init()\ntime.sleep(600)\n"), 20)
    assert outcome.reason is Reason.STALLED
    assert re.match(r"no first step for [\d.]+ s \(limit 4 s\)", outcome.detail or "")


def test_a_script_without_the_sdk_may_be_as_silent_as_it_likes(trainer: Trainer) -> None:
    outcome = trainer.ended(trainer.assign("import time\ntime.sleep(4)\n"), 20)
    assert outcome.reason is Reason.SUCCEEDED


SLOW_SAVES = """
import time, torch, trackside

class Slow(torch.nn.Linear):
    def state_dict(self, *args, **kwargs):
        time.sleep(1.6)
        return super().state_dict(*args, **kwargs)

run = trackside.init()
run.checkpointer(model=Slow(2, 1), every=40)
for step in run.steps(100):
    time.sleep(0.01)
"""


def test_checkpoints_longer_than_the_limit_are_no_hang(trainer: Trainer) -> None:
    job = trainer.assign(SLOW_SAVES)
    assert trainer.ended(job, 30).reason is Reason.SUCCEEDED
    assert no_hang_was_seen(trainer, job)


SLOWING = """
import time, trackside
run = trackside.init()
for step in run.steps(100):
    time.sleep(0.01 if step < 80 else 0.2)
"""


def test_slower_steps_are_told(trainer: Trainer) -> None:
    job = trainer.assign(SLOWING)
    assert trainer.ended(job, 30).reason is Reason.SUCCEEDED
    assert any(text.startswith(SLOWER) for text in notes(trainer, job))


def test_a_hang_is_found_while_the_server_is_away(both: tuple[EmbeddedServer, Trainer]) -> None:
    trainer, server = both[1], both[0].pid
    job = trainer.assign(steps_script(100_000, 0.01))
    pid = trainer.running(job, step=30)
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: not lives(pid), 20, "the stopped process was not ended")
    finally:
        os.kill(server, signal.SIGCONT)
    assert trainer.ended(job, 20).reason is Reason.STALLED


def test_a_limit_for_each_attempt_saves_and_ends_it(trainer: Trainer) -> None:
    outcome = trainer.ended(trainer.assign(steps_script(100_000, 0.01), attempt_timeout_s=2.0), 20)
    assert (outcome.reason, outcome.detail) == (Reason.TIMEOUT, "the limit of 2 s for one attempt was reached")


WAITS_TO_GO = "while not pathlib.Path('go').exists(): time.sleep(0.01)"


def go(trainer: Trainer, job: Job) -> None:
    (attempt_dir(trainer, job) / "work" / "go").touch()


def test_a_script_without_a_step_loop_says_that_it_cannot_pause_and_runs_on(trainer: Trainer) -> None:
    job = trainer.assign(f"import pathlib, time\nprint('on it', flush=True)\n{WAITS_TO_GO}\nprint('done')\n")
    wait_until(lambda: "on it" in trainer.output(job), 10, "the script does not run")
    trainer.store.pause(job.id)

    refused = "it has not come to a step loop within 1 s, and a script without one cannot be paused"
    wait_until(lambda: refused in (trainer.store.job(job.id).detail or ""), 10, "the pause was not refused")
    assert trainer.store.job(job.id).state is JobState.RUNNING
    go(trainer, job)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.exit_code) == (Reason.SUCCEEDED, 0)
    assert "done" in trainer.output(job)


LATE = f"""
import pathlib, time, torch, trackside
{WAITS_TO_GO}
run = trackside.init()
run.checkpointer(model=torch.nn.Linear(1, 1))
for step in run.steps(100_000):
    time.sleep(0.01)
"""


@pytest.fixture
def unhurried(fresh_home: Path, bus_urls: Mapping[str, str]) -> Iterator[Trainer]:
    """A trainer that gives a script the 10 s of the usual profile to come to its loop, and looks often."""
    often = {"beat_s": 0.1, "control_poll_s": 0.02, "ship_s": 0.01}
    with Trainer(fresh_home, bus_urls, settings={"profile": "default", **often}) as running:
        yield running


def looks_again(trainer: Trainer) -> None:
    """Wait until the worker has looked at its job anew: it does so between any two beats."""
    for _ in range(2):
        now = now_ms(trainer.client)
        wait_until(lambda: (beat := trainer.beat()) and beat.at_ms > now, 10, "the worker stands still")  # noqa: B023 -- called at once


def test_a_pause_that_comes_before_the_step_loop_waits_for_it(unhurried: Trainer) -> None:
    trainer = unhurried
    job = trainer.assign(LATE)
    wait_until(lambda: trainer.attempt(job).pid is not None, 10, "its process did not start")
    trainer.store.pause(job.id)
    looks_again(trainer)
    go(trainer, job)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.exit_code) == (Reason.PAUSED, 75)
    assert outcome.first_step == 1
    saved = trainer.store.job(job.id).checkpoints
    assert (saved[0].step if saved else 0) == outcome.last_step, "the pause lost steps"


def test_a_pause_of_worker_and_run_together_hangs_nobody(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(400, 0.01))
    pid, worker = trainer.running(job, step=30), trainer.worker_pid()
    began_s = time.monotonic()
    for each in (worker, pid):
        os.kill(each, signal.SIGSTOP)
    try:
        wait_until(lambda: time.monotonic() - began_s > 2.5 * LIMIT_S, 10, "the clock stands still")
    finally:
        for each in (pid, worker):
            os.kill(each, signal.SIGCONT)
    outcome = trainer.ended(job, 20)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 400)
    assert no_hang_was_seen(trainer, job)


def test_a_stranger_who_asks_it_to_stop_is_not_taken_for_us(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(100_000, 0.01))
    os.kill(trainer.running(job, step=3), signal.SIGTERM)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.PREEMPTED
    assert (outcome.detail or "").startswith("somebody other than Trackside asked it to stop")


EVALUATES = """
import time, trackside
run = trackside.init()
for step in run.steps(60):
    time.sleep(0.01)
    if step == 50:
        time.sleep(2.5)
"""


def test_a_learned_limit_is_not_trusted_twice_so_a_long_evaluation_passes_at_the_next_try(trainer: Trainer) -> None:
    job = trainer.assign(EVALUATES)
    assert trainer.ended(job, 20).reason is Reason.STALLED

    moved(trainer.store, job.id, JobState.QUEUED)
    again = trainer.give(job.id)

    assert trainer.ended(again, 20).reason is Reason.SUCCEEDED


def submitted(trainer: Trainer, script: str, *options: str) -> Job:
    """A job that went through the command line, given to the slot."""
    path = trainer.home / "typed" / "train.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script)
    env = {"TRACKSIDE_REDIS_URL": trainer.urls["submitter"]}
    answer = CliRunner().invoke(app, ["--home", str(trainer.home), "submit", str(path), *options], env=env)
    assert answer.exit_code == 0, answer.output
    return trainer.give(answer.stdout.strip())


def test_a_submitter_who_knows_better_is_believed(trainer: Trainer) -> None:
    longer = submitted(trainer, EVALUATES, "--stall-limit", "1m")
    assert trainer.ended(longer, 20).reason is Reason.SUCCEEDED
    none = submitted(trainer, EVALUATES, "--stall-limit", "none")
    assert trainer.ended(none, 20).reason is Reason.SUCCEEDED
    shorter = trainer.ended(submitted(trainer, EVALUATES, "--stall-limit", "400ms"), 20)
    assert shorter.reason is Reason.STALLED
    assert re.match(r"no step for [\d.]+ s \(limit 0\.4 s\)", shorter.detail or "")


def worker_row(trainer: Trainer) -> dict[str, Any]:
    """What `trackside ps` tells of the worker and its training."""
    env = {"TRACKSIDE_REDIS_URL": trainer.urls["submitter"]}
    answer = CliRunner().invoke(app, ["--home", str(trainer.home), "ps", "--json"], env=env)
    assert answer.exit_code == 0, answer.output
    found: dict[str, Any]
    (found,) = [row for row in orjson.loads(answer.stdout)["processes"] if row["role"] == "worker"]
    return found


def test_each_of_the_three_clocks_stops_alone(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(100_000, 0.01), stall_limit_s=0.0)
    pid, worker = trainer.running(job, step=30), trainer.worker_pid()
    wait_until(lambda: (worker_row(trainer)["last_step_s"] or 9) < 1.5, 10, "its last step is old")

    os.kill(pid, signal.SIGSTOP)

    def only_its_step_ages() -> bool:
        row = worker_row(trainer)
        return (
            (row["last_step_s"] or 0) > 2.5
            and row["age_s"] < 1.5
            and (row["status"], row["attempt_pid"]) == ("ok", pid)
        )

    wait_until(only_its_step_ages, 10, "its last step does not age, or its beats do")
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: (worker_row(trainer)["last_step_s"] or 9) < 1.5, 10, "it does not step again")

    os.kill(worker, signal.SIGSTOP)
    try:
        wait_until(lambda: worker_row(trainer)["status"] == "silent", 10, "its beats do not run out")
        assert worker_row(trainer)["last_step_s"] is None
        assert lives(pid), "the training has not stopped"
    finally:
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: worker_row(trainer)["last_step_s"] is not None, 10, "it does not beat again")

    os.kill(pid, signal.SIGKILL)
    assert trainer.ended(job).reason is Reason.KILLED
    wait_until(lambda: worker_row(trainer)["attempt_pid"] is None, 10, "the dead process is still shown")
