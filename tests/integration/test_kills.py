"""The four kills: training process, worker, agent, supervisor. The job ends right, once, and bit-identical."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from system import TRAIN, System, running_system
from trackside.models import EventKind, JobState, Reason, Role
from trackside.testing import wait_until
from trainer_harness import lives

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
STEPS, EVERY = 300, 20
ARGS = ("--steps", str(STEPS), "--every", str(EVERY))


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    with running_system(home, "--slots", "cpu:1", "--no-dashboard", backoff_first_s="0.2") as system:
        yield system
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project") / "train.py"
    path.write_text(TRAIN)
    return path


@pytest.fixture(scope="module")
def undisturbed(system: System, script: Path) -> tuple[str, dict[int, float]]:
    """The digest of the final weights and the loss series of a run that nobody touched."""
    job_id = system.submit(script, args=(*ARGS, "--step-ms", "1"))
    assert system.ended(job_id).state is JobState.SUCCEEDED
    assert system.job(job_id).attempt == 1
    return system.summary(job_id)["digest"], system.series(job_id, "loss")


def assert_as_undisturbed(system: System, job_id: str, undisturbed: tuple[str, dict[int, float]]) -> None:
    digest, series = undisturbed
    job = system.ended(job_id)
    assert job.state is JobState.SUCCEEDED, job
    assert system.series(job_id, "loss") == series
    assert list(series) == list(range(1, STEPS + 1))
    assert system.summary(job_id)["digest"] == digest
    ends = [event for event in system.events(job_id) if event.new is not None and event.new.terminal]
    assert len(ends) == 1, "the job ended more than once"
    starts = [event.attempt for event in system.events(job_id) if event.kind is EventKind.STARTED]
    assert starts == list(range(1, job.attempt + 1)), "an attempt was started twice or left out"


def reasons(system: System, job_id: str) -> list[Reason]:
    return [attempt.outcome.reason for attempt in system.attempts(job_id) if attempt.outcome]


def test_a_killed_training_process_is_resumed(
    system: System, script: Path, undisturbed: tuple[str, dict[int, float]]
) -> None:
    job_id = system.submit(script, args=ARGS)
    beat = system.stepping(job_id, 70)
    assert beat.attempt_pid is not None
    system.kill(beat.attempt_pid)
    assert_as_undisturbed(system, job_id, undisturbed)
    first, second = system.attempts(job_id)
    assert reasons(system, job_id) == [Reason.KILLED, Reason.SUCCEEDED]
    assert first.outcome is not None
    assert first.outcome.signal == "SIGKILL"
    assert second.resumed_step is not None
    assert first.outcome.last_step is not None
    assert 0 <= first.outcome.last_step - second.resumed_step <= EVERY


def test_a_killed_worker_loses_no_job_and_takes_its_attempt_along(
    system: System, script: Path, undisturbed: tuple[str, dict[int, float]]
) -> None:
    job_id = system.submit(script, args=ARGS)
    beat = system.stepping(job_id, 70)
    assert beat.attempt_pid is not None
    system.kill(beat.pid)
    pid = beat.attempt_pid
    wait_until(lambda: not lives(pid), 2.0, "the attempt outlived its worker")
    assert_as_undisturbed(system, job_id, undisturbed)
    assert reasons(system, job_id) == [Reason.KILLED, Reason.SUCCEEDED]
    worker = system.beat(Role.WORKER)
    assert worker is not None
    assert worker.pid != beat.pid


def test_a_killed_agent_disturbs_nothing(
    system: System, script: Path, undisturbed: tuple[str, dict[int, float]]
) -> None:
    job_id = system.submit(script, args=ARGS)
    before = system.stepping(job_id, 70)
    agent = system.beat(Role.AGENT)
    assert agent is not None
    system.kill(agent.pid)
    assert_as_undisturbed(system, job_id, undisturbed)
    assert reasons(system, job_id) == [Reason.SUCCEEDED]

    def new_agent() -> bool:
        beat = system.beat(Role.AGENT)
        return beat is not None and beat.pid != agent.pid

    wait_until(new_agent, 30.0, "no new agent came")
    again = system.beat(Role.WORKER)
    assert again is not None
    assert again.pid == before.pid, "the worker was not adopted"


def test_a_killed_supervisor_is_followed_by_one_that_carries_on(
    system: System, script: Path, undisturbed: tuple[str, dict[int, float]]
) -> None:
    job_id = system.submit(script, args=ARGS)
    beat = system.stepping(job_id, 70)
    supervisor = system.beat(Role.SUPERVISOR)
    assert supervisor is not None
    assert beat.attempt_pid is not None
    system.kill(supervisor.pid)
    system.kill(beat.attempt_pid)  # nobody is there to decide about it yet
    assert_as_undisturbed(system, job_id, undisturbed)
    assert reasons(system, job_id) == [Reason.KILLED, Reason.SUCCEEDED]
