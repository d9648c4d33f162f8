"""Pause, resume and retry on a whole system: nothing is lost, and the result is the same to the bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from system import TRAIN, System, running_system
from trackside.models import JobState, Reason, Role
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
STEPS = 300
ARGS = ("--steps", str(STEPS), "--every", "100")
FAST = (*ARGS, "--step-ms", "1")
# The first attempt is slow from here on: a command takes its time on a busy machine, and has to come before the end.
PACE = "time.sleep(args.step_ms / 1000)"
SLOW = TRAIN.replace(PACE, "time.sleep(0.1 if run.attempt == 1 and step > 120 else args.step_ms / 1000)")
# Fails after step 150 unless the file is there; no randomness of its own, so the result is that of TRAIN.
FAILING = TRAIN.replace(
    "    time.sleep(args.step_ms / 1000)",
    "    time.sleep(args.step_ms / 1000)\n"
    "    if step == 150 and not __import__('pathlib').Path('MENDED').exists():\n"
    "        raise RuntimeError('the disk with the data is not mounted')",
).replace('parser.add_argument("--every"', 'parser.add_argument("--mended")\nparser.add_argument("--every"')
OPTIONS = ("--slots", "cpu:1", "--no-dashboard")


@pytest.fixture
def slow(script: Path) -> Path:
    """The same training, which gives a test time to disturb it."""
    path = script.with_name("slow.py")
    path.write_text(SLOW)
    return path


def succeeded(system: System, job_id: str) -> tuple[str, dict[int, float]]:
    assert system.ended(job_id).state is JobState.SUCCEEDED, system.job(job_id)
    return system.summary(job_id)["digest"], system.series(job_id, "loss")


def test_a_paused_job_stays_paused_through_a_restart_of_everything_and_ends_as_if_never_paused(
    fresh_home: Path, script: Path, slow: Path
) -> None:
    with running_system(fresh_home, *OPTIONS) as system:
        undisturbed = succeeded(system, system.submit(script, args=(*ARGS, "--step-ms", "0")))
        job_id = system.submit(slow, args=FAST)
        system.stepping(job_id, 130)
        system.cli("pause", job_id)
        wait_until(lambda: system.job(job_id).state is JobState.PAUSED, 30, "it did not pause")
        outcome = system.attempts(job_id)[0].outcome
        assert outcome is not None
        assert outcome.reason is Reason.PAUSED
        before = system.job(job_id)
        assert before.checkpoints[0].step == outcome.last_step, "the pause lost steps"
        assert before.slot is None
    with running_system(fresh_home, *OPTIONS) as system:
        # Another job takes the slot, so the supervisor has looked at everything and placed what was to be placed.
        other = system.submit(script, args=("--steps", "5"))
        assert system.ended(other).state is JobState.SUCCEEDED
        assert system.job(job_id) == before
        system.cli("resume", job_id)
        assert succeeded(system, job_id) == undisturbed
        first, second = system.attempts(job_id)
        assert first.outcome is not None
        assert second.resumed_step == first.outcome.last_step, "steps were done again"


def test_a_resumed_job_goes_back_to_the_checkpoint_that_was_named(fresh_home: Path, script: Path, slow: Path) -> None:
    with running_system(fresh_home, *OPTIONS) as system:
        undisturbed = succeeded(system, system.submit(script, args=(*ARGS, "--step-ms", "0")))
        job_id = system.submit(slow, args=FAST)
        system.stepping(job_id, 130)
        system.cli("pause", job_id)
        wait_until(lambda: system.job(job_id).state is JobState.PAUSED, 30, "it did not pause")
        older = system.job(job_id).checkpoints[-1]
        assert older.step == 100
        system.cli("resume", job_id, "--from", older.name)
        assert succeeded(system, job_id) == undisturbed
        assert (system.attempts(job_id)[1].resumed_step or 0) >= 100  # more, where the kill came late


def test_a_retried_job_goes_on_from_the_failed_ones_checkpoints_and_ends_the_same(
    fresh_home: Path, script: Path
) -> None:
    with running_system(fresh_home, *OPTIONS, backoff_first_s="0.1") as system:
        digest, series = succeeded(system, system.submit(script, args=(*ARGS, "--step-ms", "0")))
        marker = fresh_home / "mended"
        text = FAILING.replace("Path('MENDED')", f"Path({str(marker)!r})")
        failing = script.with_name("failing.py")
        failing.write_text(text)
        old = system.submit(failing, "--retries", "0", args=(*ARGS, "--step-ms", "1"))
        assert system.ended(old).state is JobState.FAILED
        child = system.cli("submit", str(script), "--id", "child", "--after", old, "--", "--steps", "5")
        assert system.ended(child).state is JobState.FAILED
        assert old in (system.job(child).detail or "")
        marker.touch()
        new = system.cli("retry", old)
        job = system.ended(new)
        assert job.state is JobState.SUCCEEDED, job
        assert system.attempts(new)[0].resumed_step == 100
        assert system.summary(new)["digest"] == digest
        late = {step: loss for step, loss in series.items() if step > 100}
        assert system.series(new, "loss") == late
        fresh = system.cli("retry", old, "--fresh")
        assert succeeded(system, fresh) == (digest, series)
        assert system.job(old).state is JobState.FAILED


def test_a_slot_whose_jobs_crash_rests_and_its_self_test_brings_it_back(fresh_home: Path, script: Path) -> None:
    crash = script.with_name("crash.py")
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with running_system(fresh_home, *OPTIONS, breaker_after="2", breaker_first_s="0.5", breaker_max_s="1") as system:
        for _ in range(2):
            assert system.ended(system.submit(crash, "--retries", "0")).state is JobState.FAILED
        job_id = system.submit(script, args=("--steps", "5"))
        assert system.ended(job_id).state is JobState.SUCCEEDED
        probe = next(job for job in system.store.jobs(system.store.job_ids()) if job.name == "self-test")
        assert probe.state is JobState.SUCCEEDED, probe
        assert "memory_holds: ok" in system.output(probe.id)
        assert system.attempts(job_id)[0].assigned_at_ms >= (probe.ended_at_ms or 0)


def test_a_cancelled_job_that_ignores_everything_leaves_no_process(fresh_home: Path, script: Path) -> None:
    stubborn = script.with_name("stubborn.py")
    stubborn.write_text(
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, "
        "signal.SIG_IGN); time.sleep(600)'], start_new_session=True)\nprint(child.pid, flush=True)\n"
        "while True:\n    time.sleep(0.1)\n"
    )
    with running_system(fresh_home, *OPTIONS, stop_grace_s="0.5") as system:
        job_id = system.submit(stubborn)
        wait_until(lambda: system.output(job_id).strip().isdigit(), 30, "it did not start its child")
        pid = int(system.output(job_id))
        system.cli("cancel", job_id)
        system.cli("cancel", job_id)
        assert system.ended(job_id).state is JobState.CANCELLED
        with pytest.raises(ProcessLookupError):
            system.kill(pid, signal.SIGCONT)


def test_supervisors_that_die_right_after_each_assignment_lose_and_double_nothing(
    fresh_home: Path, script: Path, slow: Path
) -> None:
    with running_system(fresh_home, *OPTIONS, backoff_first_s="0.1", crash_at="after assign:1") as system:
        first = wait_until(lambda: system.beat(Role.SUPERVISOR), 10, "no supervisor beats")
        assert first is not None
        undisturbed = succeeded(system, system.submit(script, args=(*ARGS, "--step-ms", "0")))
        job_id = system.submit(slow, args=FAST)
        beat = system.stepping(job_id, 130)
        assert beat.attempt_pid is not None
        system.kill(beat.attempt_pid)
        assert succeeded(system, job_id) == undisturbed

        def another() -> bool:
            beat = system.beat(Role.SUPERVISOR)  # the last one of who has died may still be there
            return beat is not None and beat.pid != first.pid

        wait_until(another, 10, "no supervisor died")
        assert [attempt.number for attempt in system.attempts(job_id)] == [1, 2]
        assert (system.attempts(job_id)[1].resumed_step or 0) >= 100  # more, where the kill came late
