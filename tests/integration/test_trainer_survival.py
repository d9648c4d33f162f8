"""What the trainer survives: killed workers and agents, and a server that is away."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store_world import events_of
from trackside.bus import queue
from trackside.models import AttemptState, EventKind, Job, Reason
from trackside.processes import start_time
from trackside.server import EmbeddedServer, ServerBinary
from trackside.testing import wait_until
from trainer_harness import Trainer, kill, lives, server_and_trainer, steps_script, supervised, supervising

HIDING = """
import os, subprocess, sys, time, trackside
hidden = "import os,time; os.setsid(); print('pid', os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", hidden])
print("pid", os.getpid(), flush=True)
run = trackside.init()
for step in run.steps(100_000):
    run.log(loss=1.0)
    time.sleep(0.01)
"""


def let_pass(seconds: float) -> None:
    """Where the moment is the point, or how long something lasts."""
    until_s = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until_s, seconds + 10, "time stands still", every_s=0.001)


@pytest.fixture(scope="module")
def both(server_binary: ServerBinary) -> Iterator[tuple[EmbeddedServer, Trainer]]:
    with server_and_trainer(server_binary, restart_intensity=50) as both:
        yield both


@pytest.fixture
def server(both: tuple[EmbeddedServer, Trainer]) -> EmbeddedServer:
    return both[0]


@pytest.fixture
def trainer(both: tuple[EmbeddedServer, Trainer]) -> Trainer:
    return both[1]


def test_a_killed_worker_takes_its_attempt_along_and_is_replaced(trainer: Trainer) -> None:
    job = trainer.assign(HIDING)
    pids = trainer.pids_in_output(job, 2)
    trainer.running(job, step=3)
    worker = trainer.worker_pid()

    before_s = time.monotonic()
    kill(worker)
    outcome = trainer.ended(job)
    ended_s = time.monotonic() - before_s
    wait_until(lambda: trainer.worker_pid() != worker, 20, "no new worker")
    back_s = time.monotonic() - before_s

    assert (outcome.reason, outcome.signal) == (Reason.KILLED, "SIGKILL")
    assert outcome.seen_by == "agent:box"
    assert [pid for pid in pids if lives(pid)] == []
    assert trainer.steps(job)[-1] >= (outcome.last_step or 10**9)
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED
    print(f"worker killed -> ended {ended_s * 1000:.0f} ms, new worker beats {back_s * 1000:.0f} ms")


def test_a_killed_agent_disturbs_nothing_and_the_next_one_adopts(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(100_000, 0.01))
    attempt_pid, worker = trainer.running(job, step=3), trainer.worker_pid()

    trainer.kill_agent()
    trainer.start()

    assert trainer.worker_pid() == worker
    assert trainer.running(job) == attempt_pid
    trainer.store.cancel(job.id)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.CANCELLED
    assert trainer.steps(job) == list(range(1, (outcome.last_step or 0) + 1))
    # An adopted worker is watched like one of its own.
    kill(worker)
    wait_until(lambda: trainer.worker_pid() != worker, 20, "the adopted worker was not replaced")
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED


def test_an_adopted_worker_that_dies_leaves_no_process_behind(trainer: Trainer) -> None:
    trainer.kill_agent()
    trainer.start()
    job = trainer.assign(HIDING)
    pids = trainer.pids_in_output(job, 2)
    trainer.running(job)

    kill(trainer.worker_pid())

    assert trainer.ended(job).reason is Reason.KILLED
    assert [pid for pid in pids if lives(pid)] == []


def test_when_agent_and_worker_are_killed_the_next_agent_reports_the_attempt(trainer: Trainer) -> None:
    job = trainer.assign(HIDING)
    pids = trainer.pids_in_output(job, 2)
    trainer.running(job, step=3)

    trainer.kill_agent()
    kill(trainer.worker_pid())
    wait_until(lambda: not lives(pids[-1]) or not lives(pids[0]), 20, "the attempt outlived its worker")
    trainer.start()

    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.signal) == (Reason.LOST, None)
    assert outcome.detail == "its worker and its agent went down together, as when a host goes down"
    assert [pid for pid in pids if lives(pid)] == []


def host_goes_down(trainer: Trainer) -> tuple[Job, Path]:
    """A job whose agent, worker and processes are all killed at once, and the note of who had taken it."""
    job = trainer.assign(steps_script(100_000, 0.01))
    pid, worker = trainer.running(job, step=3), trainer.worker_pid()
    trainer.kill_agent()
    kill(worker)
    wait_until(lambda: not lives(pid) and not lives(worker), 20, "the attempt outlived its worker")
    (note,) = (trainer.home / "run" / "taken").glob("[!.]*.json")
    return job, note


def test_after_a_restart_of_the_host_the_attempt_is_lost_and_its_old_pids_mean_nobody(trainer: Trainer) -> None:
    job, note = host_goes_down(trainer)
    innocent = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        noted = json.loads(note.read_text())
        assert noted["boot"]
        started = start_time(innocent.pid)
        note.write_text(json.dumps({**noted, "boot": "an earlier one", "pid": innocent.pid, "pid_started": started}))
        trainer.start()
        outcome = trainer.ended(job)
        assert lives(innocent.pid), "a process that has the old pid was killed"
    finally:
        innocent.kill()
        innocent.wait()
    assert (outcome.reason, outcome.detail) == (
        Reason.LOST,
        "its host went down, and has been started anew since",
    )


def test_a_note_from_before_there_were_boots_and_deaths_in_it_still_tells_whose_attempt_it_was(
    trainer: Trainer,
) -> None:
    job, note = host_goes_down(trainer)
    noted = json.loads(note.read_text())
    old = ("v", "slot", "job", "attempt", "attempt_dir", "worker_pid", "worker_started", "pid", "pid_started")
    note.write_text(json.dumps({name: noted[name] for name in old}))
    trainer.start()
    assert trainer.ended(job).reason is Reason.LOST


def test_a_worker_killed_alone_is_told_as_that_though_its_agent_dies_before_it_can_report_it(
    server: EmbeddedServer, trainer: Trainer
) -> None:
    job = trainer.assign(steps_script(100_000, 0.01))
    pid = trainer.running(job, step=3)
    worker = trainer.worker_pid()
    (note,) = (trainer.home / "run" / "taken").glob("[!.]*.json")

    server.stop()
    kill(worker)
    wait_until(lambda: not lives(pid) and json.loads(note.read_text())["death"], 20, "the agent noted no death")
    trainer.kill_agent()
    server.start().wait_ready()
    trainer.start()

    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.signal, outcome.detail) == (
        Reason.KILLED,
        "SIGKILL",
        "the worker was killed (SIGKILL)",
    )


def test_a_worker_killed_at_any_moment_leaves_each_attempt_with_one_end(trainer: Trainer) -> None:
    draw = random.Random(5)
    for _ in range(12):
        worker = trainer.worker_pid()
        job = trainer.assign(steps_script(20, 0.001))
        let_pass(draw.uniform(0, 0.06))
        kill(worker)
        outcome = trainer.ended(job)
        assert outcome.reason in (Reason.SUCCEEDED, Reason.KILLED)
        ends = [event for event in events_of(trainer.store, job.id) if event.kind is EventKind.ENDED]
        assert len(ends) == 1
        wait_until(lambda worker=worker: trainer.worker_pid() != worker, 10, "no new worker")  # type: ignore[misc]  # mypy cannot type it
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED
    wait_until(lambda: queue.queued(trainer.client, "box-cpu0") == [], 20, "ids are left in the queue")
    started = "rq:wip:slot-box-cpu0"
    wait_until(lambda: trainer.for_rq.zcard(started) == 0, 20, f"RQ lists {trainer.for_rq.zrange(started, 0, -1)!r}")
    taken = trainer.home / "run" / "taken"
    wait_until(lambda: not list(taken.iterdir()), 20, "notes of taken attempts are left")


@pytest.mark.slow
def test_a_frozen_worker_is_replaced_and_its_attempt_ended(trainer: Trainer) -> None:
    job = trainer.assign(HIDING)
    pids = trainer.pids_in_output(job, 2)
    trainer.running(job, step=3)
    worker = trainer.worker_pid()

    os.kill(worker, signal.SIGSTOP)

    outcome = trainer.ended(job, 20)
    assert outcome.reason is Reason.LOST
    assert re.fullmatch(r"the worker stood still for \d+ s and was ended by its agent", outcome.detail or "")
    assert [pid for pid in pids if lives(pid)] == []
    assert not lives(worker)
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED


def test_training_goes_on_while_the_server_is_away_and_nothing_is_lost(
    server: EmbeddedServer, trainer: Trainer
) -> None:
    job = trainer.assign(steps_script(400, 0.01))
    pid = trainer.running(job, step=3)
    journal = trainer.home / "jobs" / job.id / "attempts" / "1" / "journal.jsonl"

    server.stop()
    size = journal.stat().st_size
    wait_until(lambda: journal.stat().st_size > size + 2000, 20, "training stands still without a server")
    assert lives(pid)
    # Longer than the rest of the attempt takes: its end, too, waits for the server.
    wait_until(lambda: not lives(pid), 30, "the attempt did not end")
    server.start().wait_ready()

    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 400)
    assert trainer.steps(job) == list(range(1, 401))
    assert trainer.output(job) == "".join(f"step {step}\n" for step in range(1, 401))
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED


def test_a_frozen_server_doubles_nothing(server: EmbeddedServer, trainer: Trainer) -> None:
    job = trainer.assign(steps_script(600, 0.01))
    trainer.running(job, step=3)
    pid = server.pid
    assert pid is not None

    os.kill(pid, signal.SIGSTOP)
    try:
        let_pass(3)
    finally:
        os.kill(pid, signal.SIGCONT)

    outcome = trainer.ended(job)
    assert outcome.reason is Reason.SUCCEEDED
    assert trainer.steps(job) == list(range(1, 601))
    assert trainer.output(job) == "".join(f"step {step}\n" for step in range(1, 601))


def test_a_worker_killed_while_the_server_is_away_is_reported_afterwards(
    server: EmbeddedServer, trainer: Trainer
) -> None:
    job = trainer.assign(HIDING)
    pids = trainer.pids_in_output(job, 2)
    trainer.running(job, step=3)
    worker = trainer.worker_pid()

    server.stop()
    kill(worker)
    wait_until(lambda: [pid for pid in pids if lives(pid)] == [], 20, "the attempt outlived its worker")
    server.start().wait_ready()

    assert trainer.ended(job).reason is Reason.KILLED
    assert trainer.ended(trainer.assign(steps_script(3))).reason is Reason.SUCCEEDED


def test_a_second_agent_for_the_same_home_is_refused(trainer: Trainer) -> None:
    env = {**os.environ, "TRACKSIDE_HOME": str(trainer.home), "TRACKSIDE_REDIS_URL": trainer.urls["trainer"]}
    done = subprocess.run(
        [sys.executable, "-m", "trackside_trainer", "cpu:1"], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "runs already as process" in done.stderr


SAVING = """
import time, torch, trackside
run = trackside.init()
state = run.checkpointer(model=torch.nn.Linear(2, 1), every=1000)
for step in run.steps(100_000):
    time.sleep(0.01)
"""


def test_an_orderly_stop_saves_reports_and_leaves_the_books_clean(trainer: Trainer) -> None:
    job = trainer.assign(SAVING)
    trainer.running(job, step=3)

    code = trainer.stop()

    assert code == 0
    attempt = trainer.attempt(job)
    assert attempt.state is AttemptState.ENDED
    assert attempt.outcome is not None
    assert attempt.outcome.reason is Reason.PREEMPTED
    assert trainer.store.job(job.id).checkpoints[0].step == attempt.outcome.last_step
    assert trainer.store.slots() == []
    assert trainer.beat() is None
    assert trainer.for_rq.smembers("rq:workers") == set()
    assert list((trainer.home / "run" / "taken").iterdir()) == []


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
while True:
    time.sleep(1)
"""


def test_a_short_grace_ends_what_does_not_listen_and_workers_without_an_agent(server_binary: ServerBinary) -> None:
    with server_and_trainer(server_binary, stop_grace_s=1) as (_, trainer):
        deaf = trainer.assign(STUBBORN)
        wait_until(lambda: "deaf" in trainer.output(deaf), 10, "the script did not start")
        trainer.store.cancel(deaf.id)
        outcome = trainer.ended(deaf)
        assert (outcome.reason, outcome.signal) == (Reason.CANCELLED, "SIGKILL")
        assert "killed" in (outcome.detail or "")

        job = trainer.assign(SAVING)
        trainer.running(job, step=3)
        worker = trainer.worker_pid()
        trainer.kill_agent()
        trainer.process = None
        outcome = trainer.ended(job)
        assert outcome.reason is Reason.PREEMPTED
        wait_until(lambda: not lives(worker), 20, "a worker without an agent did not stop")


def test_a_worker_that_stands_still_is_told_from_a_host_that_is_silent(server_binary: ServerBinary) -> None:
    with server_and_trainer(server_binary) as (_, trainer):
        job = trainer.assign(steps_script(100_000, 0.01))
        trainer.running(job, step=3)
        worker = trainer.worker_pid()
        with supervising(trainer.urls["supervisor"], trainer.home / "supervisor"):
            supervised(trainer, rounds=10)  # it judges no silence before it has looked for a while
            os.kill(worker, signal.SIGSTOP)
            try:
                outcome = trainer.ended(job, 20)
            finally:
                os.kill(worker, signal.SIGCONT)
    assert (outcome.reason, outcome.seen_by) == (Reason.LOST, "supervisor")
    assert re.match("its worker stands still or is cut off, while its host is heard: no beat for", outcome.detail or "")
