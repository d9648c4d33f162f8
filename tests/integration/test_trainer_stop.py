"""An orderly stop of a trainer with a real supervisor: the job goes back once, and waits for a trainer that stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trackside.models import Job, JobState, Reason
from trackside.testing import wait_until
from trainer_harness import Trainer, lives, steps_script, supervised, supervising

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
GRACE_S = 1.0  # within which a step has to come to its end, also on a busy machine
SAVES_LONG = """
import time, torch, trackside
class Slow:
    def state_dict(self):
        time.sleep({seconds})
        return {{}}
    def load_state_dict(self, state):
        pass
run = trackside.init()
run.checkpointer(model=torch.nn.Linear(1, 1), slow=Slow(), every=None)
for step in run.steps(100_000):
    time.sleep(0.01)
"""


def becomes(trainer: Trainer, job_id: str, state: JobState, timeout_s: float) -> Job:
    wait_until(lambda: trainer.store.job(job_id).state is state, timeout_s, f"{job_id} did not become {state}")
    return trainer.store.job(job_id)


@pytest.fixture
def supervisor(bus_urls: Mapping[str, str], tmp_path: Path) -> Iterator[None]:
    with supervising(bus_urls["supervisor"], tmp_path):
        yield


@pytest.mark.usefixtures("supervisor")
def test_a_job_of_a_stopping_trainer_is_not_given_to_its_other_slot(
    fresh_home: Path, bus_urls: Mapping[str, str]
) -> None:
    # The beat of the idle worker lives long, so that it offers its slot while it sleeps and knows of no stop.
    with Trainer(fresh_home, bus_urls, slots="cpu:2", settings={"beat_ttl_s": 20}) as trainer:
        job_id = trainer.submit(steps_script(200, 0.02))
        job = becomes(trainer, job_id, JobState.RUNNING, 20)
        trainer.running(job, step=5)
        other = trainer.worker_pid(next(slot.id for slot in trainer.store.slots() if slot.id != job.slot))
        assert trainer.process is not None
        os.kill(other, signal.SIGSTOP)
        try:
            trainer.process.terminate()
            becomes(trainer, job_id, JobState.QUEUED, 20)
            supervised(trainer, rounds=2)
        finally:
            os.kill(other, signal.SIGCONT)
        assert trainer.stop() == 0
        waiting = trainer.store.job(job_id)
        assert (waiting.state, waiting.slot, waiting.attempt) == (JobState.QUEUED, None, 1)

        trainer.start()
        ended = becomes(trainer, job_id, JobState.SUCCEEDED, 40)
        outcomes = [attempt.outcome for attempt in trainer.store.attempts(ended)]
        assert [outcome.reason for outcome in outcomes if outcome] == [Reason.PREEMPTED, Reason.SUCCEEDED]
        assert not any(outcome.stranger for outcome in outcomes if outcome), "our own stop counts against the job"


def test_a_worker_without_an_agent_lets_its_run_finish_saving(fresh_home: Path, bus_urls: Mapping[str, str]) -> None:
    with Trainer(fresh_home, bus_urls, settings={"stop_grace_s": GRACE_S}) as trainer:
        job = trainer.assign(SAVES_LONG.format(seconds=3 * GRACE_S))
        trainer.running(job, step=3)
        worker = trainer.worker_pid()
        trainer.kill_agent()
        trainer.process = None
        outcome = trainer.ended(job)
        # Its grace is over by then, so on a busy machine it may be killed on its way out.
        assert outcome.reason is Reason.PREEMPTED
        saved = trainer.store.job(job.id).checkpoints
        assert [each.step for each in saved] == [outcome.last_step], "it was cut off in the middle of its save"
        wait_until(lambda: not lives(worker), 20, "the worker stays")


def test_a_stopping_trainer_does_not_wait_for_a_checkpoint_that_takes_too_long(
    fresh_home: Path, bus_urls: Mapping[str, str]
) -> None:
    with Trainer(fresh_home, bus_urls, settings={"stop_grace_s": GRACE_S}) as trainer:
        job = trainer.assign(SAVES_LONG.format(seconds=600))
        trainer.running(job, step=3)
        assert trainer.stop() == 0
        outcome = trainer.ended(job)
        assert (outcome.reason, outcome.signal) == (Reason.PREEMPTED, "SIGKILL")
