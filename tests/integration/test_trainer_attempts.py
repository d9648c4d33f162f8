"""What becomes of an attempt that a worker takes: its end, its numbers, its output."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest

from store_world import events_of, moved
from trackside.bus import queue, streams
from trackside.models import AttemptState, Beat, EventKind, JobState, Reason, Slot
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trainer_harness import Trainer, kill, lives, steps_script, trainer_on

OUTPUT_LIMIT = 200_000


@pytest.fixture(scope="module")
def trainer(redis_server: EmbeddedServer) -> Iterator[Trainer]:
    with trainer_on(redis_server, output_max_bytes=OUTPUT_LIMIT) as trainer:
        yield trainer


def test_an_attempt_succeeds_and_all_it_said_is_on_the_bus_in_order(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(300))

    outcome = trainer.ended(job)

    assert (outcome.reason, outcome.exit_code, outcome.first_step, outcome.last_step) == (Reason.SUCCEEDED, 0, 1, 300)
    assert trainer.steps(job) == list(range(1, 301))
    assert trainer.output(job) == "".join(f"step {step}\n" for step in range(1, 301))
    attempt = trainer.attempt(job)
    assert (attempt.total_steps, attempt.worker_pid) == (300, trainer.worker_pid())
    job_now = trainer.store.job(job.id)
    assert (job_now.state, job_now.slot, job_now.reason) == (JobState.RUNNING, None, Reason.SUCCEEDED)


def test_rq_shows_what_runs_and_what_is_over(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(10_000, 0.01))
    trainer.running(job)
    slot_queue = queue.slot_queue(trainer.for_rq, "box-cpu0")
    rq_id = f"{job.id}_1".encode()

    started = cast(list[bytes], trainer.for_rq.zrange(slot_queue.started_job_registry.key, 0, -1))
    assert [member.split(b":")[0] for member in started] == [rq_id]
    assert queue.queued(trainer.client, "box-cpu0") == []
    workers = trainer.for_rq.smembers("rq:workers")
    assert len(workers) == 1
    assert trainer.for_rq.hget(next(iter(workers)), "state") == b"busy"
    assert 0 < trainer.for_rq.ttl(next(iter(workers))) <= 6

    trainer.store.cancel(job.id)
    trainer.ended(job)
    wait_until(
        lambda: trainer.for_rq.zscore(slot_queue.failed_job_registry.key, rq_id), 20, "RQ does not list it as failed"
    )
    assert trainer.for_rq.zcard(slot_queue.started_job_registry.key) == 0
    wait_until(lambda: trainer.for_rq.hget(next(iter(workers)), "state") == b"idle", 20, "the worker is still busy")


def test_a_killed_training_process_is_reported_with_all_that_it_did(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(10_000, 0.01))
    pid = trainer.running(job, step=3)

    kill(pid)
    outcome = trainer.ended(job)

    assert (outcome.reason, outcome.signal) == (Reason.KILLED, "SIGKILL")
    assert (outcome.last_step or 0) >= 3
    assert trainer.steps(job)[-1] >= (outcome.last_step or 0)


GRANDCHILDREN = """
import os, subprocess, sys, time
hidden = "import os,time; os.setsid(); print('pid', os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", hidden])
subprocess.Popen(["sh", "-c", "echo pid $$; trap '' TERM; sleep 600"])
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        print("pid", os.getpid(), flush=True)
        time.sleep(600)
    os._exit(0)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""


def test_cancelling_ends_an_unmodified_script_and_everything_it_started(trainer: Trainer) -> None:
    job = trainer.assign(GRANDCHILDREN)
    pids = trainer.pids_in_output(job, 4)
    assert all(lives(pid) for pid in pids)

    trainer.store.cancel(job.id)
    outcome = trainer.ended(job)

    assert outcome.reason is Reason.CANCELLED
    assert [pid for pid in pids if lives(pid)] == []


LEFT_RUNNING = """
import subprocess
for command in (["sleep", "600"], ["sh", "-c", "trap '' TERM HUP; sleep 600"]):
    print("pid", subprocess.Popen(command, start_new_session=True).pid, flush=True)
"""


def test_what_a_finished_script_left_running_is_gone_before_the_slot_is_free(trainer: Trainer) -> None:
    job = trainer.assign(LEFT_RUNNING)
    outcome = trainer.ended(job)
    assert [pid for pid in trainer.pids_in_output(job, 2) if lives(pid)] == []
    assert outcome.reason is Reason.SUCCEEDED


def test_pausing_saves_and_ends_at_a_step_boundary(trainer: Trainer) -> None:
    job = trainer.assign(CHECKPOINTED.format(total=100_000, pause=0.01))
    trainer.running(job, step=2)
    trainer.store.pause(job.id)

    outcome = trainer.ended(job)

    assert outcome.reason is Reason.PAUSED
    job_now = trainer.store.job(job.id)
    assert job_now.checkpoints[0].step == outcome.last_step
    assert job_now.checkpoints[0].storage == trainer.slot().storage


CHECKPOINTED = """
import time, torch, trackside
run = trackside.init()
model = torch.nn.Linear(2, 1)
state = run.checkpointer(model=model, every=5)
for step in run.steps({total}):
    run.log(loss=1.0 / step)
    time.sleep({pause})
"""


def test_the_next_attempt_goes_on_from_the_accepted_checkpoint(trainer: Trainer) -> None:
    job = trainer.assign(CHECKPOINTED.format(total=40, pause="0.1 if run.attempt == 1 else 0.0"))
    pid = trainer.running(job, step=12)
    kill(pid)
    first = trainer.ended(job)
    saved = trainer.store.job(job.id).checkpoints[0].step

    moved(trainer.store, job.id, JobState.QUEUED)
    again = trainer.give(job.id)
    second = trainer.ended(again)

    assert (first.reason, second.reason, second.last_step) == (Reason.KILLED, Reason.SUCCEEDED, 40)
    assert second.first_step == saved + 1
    attempt = trainer.attempt(again)
    assert (attempt.number, attempt.resumed_step) == (2, saved)
    kinds = [event.kind for event in events_of(trainer.store, job.id)]
    assert EventKind.RESTORED in kinds


def test_the_script_sees_no_address_and_no_password(trainer: Trainer) -> None:
    script = """
import os, subprocess
print(dict(os.environ))
print(subprocess.run(["env"], capture_output=True, text=True).stdout)
print(sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) < 100))
"""
    job = trainer.assign(script)
    trainer.ended(job)
    said = trainer.output(job)

    password = urlsplit(trainer.urls["trainer"]).password or "no password"
    assert password not in said
    assert "REDIS" not in said
    assert "socket:" not in said
    assert "TRACKSIDE_ATTEMPT" in said
    assert "'CUDA_VISIBLE_DEVICES': ''" in said


def test_another_interpreter_starts_cold_and_does_the_same(trainer: Trainer) -> None:
    script = steps_script(5) + "\nimport sys\nprint(sys.executable, 'redis' in sys.modules)\n"
    job = trainer.assign(script, python=sys.executable)

    outcome = trainer.ended(job, 30)

    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 5)
    assert f"{sys.executable} False" in trainer.output(job)


def test_output_beyond_the_bound_is_kept_in_the_file_only(trainer: Trainer) -> None:
    job = trainer.assign("for at in range(60_000):\n    print(at)")
    trainer.ended(job)
    shipped = trainer.output(job)
    whole = "".join(f"{at}\n" for at in range(60_000))
    assert shipped[:OUTPUT_LIMIT] == whole[:OUTPUT_LIMIT]
    assert shipped[OUTPUT_LIMIT:].startswith("\n[output beyond 200000 bytes is kept in ")
    kept = trainer.home / "jobs" / job.id / "attempts" / "1" / "output.log"
    assert kept.read_text() == whole


FORGED: dict[str, Any] = {
    "function": json.dumps(["os.system", None, ["touch MARK"], {}]).encode(),
    "pickle": pickle.dumps(("os.system", None, ("touch MARK",), {})),
    "large": b"x" * 100_000,
    "entry": json.dumps([queue.FUNCTION, None, [], {}]).encode(),
}


def test_forged_rq_jobs_are_refused_and_the_worker_lives(trainer: Trainer, tmp_path: Path) -> None:
    pid = trainer.worker_pid()
    tester, mark = trainer.tester, tmp_path / "mark"
    ids = {kind: f"forged-{kind}_1" for kind in FORGED}
    for kind, rq_id in ids.items():
        data = FORGED[kind].replace(b"MARK", str(mark).encode())
        tester.hset(f"rq:job:{rq_id}", mapping={"data": data, "status": "queued", "failure_callback_name": "os.abort"})
    tester.set("rq:job:wrongtype_1", "a string")
    strange = ["wrongtype_1", "../../etc/passwd_1", "no-number", "a_1_\x00", "x" * 5000, "gone-abcdef_1"]
    tester.rpush("rq:queue:slot-box-cpu0", *ids.values(), *strange)

    job = trainer.assign(steps_script(2))

    assert trainer.ended(job).reason is Reason.SUCCEEDED
    assert trainer.worker_pid() == pid
    assert not mark.exists()
    wait_until(lambda: queue.queued(trainer.client, "box-cpu0") == [], 20, "strange ids are still queued")
    assert {tester.hget(f"rq:job:{rq_id}", "status") for rq_id in ids.values()} == {b"failed"}


def test_an_attempt_of_another_slot_is_refused(trainer: Trainer) -> None:
    elsewhere = Slot(id="elsewhere-cpu0", host="elsewhere", kind="cpu", storage="other")
    trainer.store.register_slot(elsewhere)
    job = trainer.give(trainer.submit(steps_script(2)), slot=1)
    assert job.slot == elsewhere.id

    trainer.tester.rpush("rq:queue:slot-box-cpu0", f"{job.id}_1")

    wait_until(lambda: queue.queued(trainer.client, "box-cpu0") == [], 20, "the strange id is still queued")
    assert trainer.attempt(job).state is AttemptState.ASSIGNED
    assert EventKind.STARTED not in [event.kind for event in events_of(trainer.store, job.id)]
    trainer.store.retire_slot(elsewhere.id)


def test_an_attempt_that_is_over_is_not_run_again(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(2))
    assert trainer.ended(job).reason is Reason.SUCCEEDED
    trainer.tester.rpush("rq:queue:slot-box-cpu0", f"{job.id}_1")
    wait_until(lambda: queue.queued(trainer.client, "box-cpu0") == [], 20, "the stale id is still queued")
    kinds = [event.kind for event in events_of(trainer.store, job.id)]
    assert (kinds.count(EventKind.STARTED), kinds.count(EventKind.ENDED)) == (1, 1)


def test_a_fenced_attempt_stops_and_writes_no_more(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(100_000, 0.01))
    pid = trainer.running(job, step=3)

    with trainer.client.pipeline() as pipe:
        streams.open_attempt(pipe, job.id, 2)
        pipe.execute()

    wait_until(lambda: not lives(pid), 20, "the fenced process still runs")
    wait_until(lambda: (beat := trainer.beat()) is not None and beat.job is None, 20, "the slot is not free")
    entries = [entry for entry, _, _ in streams.batches(trainer.client, job.id)]
    assert all(entry.startswith("1-") for entry in entries)
    assert trainer.attempt(job).outcome is None


def test_numbers_and_progress_are_in_the_beat(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(10_000, 0.005))
    pid = trainer.running(job, step=20)

    def told() -> Beat | None:
        beat = trainer.beat()
        if beat is None or None in (beat.steps_per_s, beat.cpu_pct, beat.rss_mib, beat.step_age_s):
            return None
        return beat

    beat = wait_until(told, 20, "the beat tells no progress")
    assert beat is not None
    assert (beat.attempt_pid, beat.total, beat.attempt) == (pid, 10_000, 1)
    assert 0 < (beat.steps_per_s or 0) < 400
    trainer.store.cancel(job.id)
    trainer.ended(job)


def test_rq_info_tells_the_truth_and_harms_nothing(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(10_000, 0.01))
    pid = trainer.running(job)
    rq_info = [sys.executable, "-m", "rq.cli", "info", "--url", trainer.urls["tester"]]
    told = subprocess.run(
        [*rq_info, "--queue-class", "trackside.bus.queue.AttemptQueue"], capture_output=True, text=True, timeout=30
    )
    assert "slot-box-cpu0 | " in told.stdout, told.stdout + told.stderr
    assert "1 executing" in told.stdout
    assert "1 workers" in told.stdout
    assert lives(pid)
    trainer.store.cancel(job.id)
    trainer.ended(job)


def test_a_stop_of_the_training_process_by_somebody_else_counts_as_preempted(trainer: Trainer) -> None:
    job = trainer.assign(CHECKPOINTED.format(total=100_000, pause=0.01))
    pid = trainer.running(job, step=2)
    os.kill(pid, signal.SIGTERM)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.stranger) == (Reason.PREEMPTED, True)
    assert trainer.store.job(job.id).checkpoints[0].step == outcome.last_step


PARALLEL = """
import numpy as np, torch
a = torch.ones(800, 800)
print("torch", torch.get_num_threads(), float((a @ a).sum()))
b = np.ones((800, 800))
print("numpy", float((b @ b).sum()))
print("drawn", float(torch.rand(1)), float(np.random.rand()))
"""


def test_a_forked_attempt_has_its_threads_and_random_numbers_of_its_own(trainer: Trainer) -> None:
    jobs = [trainer.assign(PARALLEL)]
    trainer.ended(jobs[0])
    jobs.append(trainer.assign(PARALLEL))
    trainer.ended(jobs[1])
    jobs.append(trainer.assign(PARALLEL, python=sys.executable))
    assert trainer.ended(jobs[2], 60).reason is Reason.SUCCEEDED

    first, second, cold = (trainer.output(job).split() for job in jobs)
    assert first[:3] == ["torch", str(trainer.slot().threads), "512000000.0"]
    assert first[3:5] == ["numpy", "512000000.0"]
    assert len({first[6], second[6], cold[6]}) == 3  # unseeded, each draws its own numbers
    assert len({first[7], second[7], cold[7]}) == 3
