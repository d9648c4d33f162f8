"""A disk without a byte left ends no training, has none done again, and gets no more of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from trackside.models import JobState, Reason
from trackside.testing import wait_until
from trainer_harness import Trainer, steps_script, supervised, supervising

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
SIZE_BYTES = 4 << 20
MOUNTED = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'


class SmallDisk:
    """The data folder of a trainer, on a disk of its own that its processes see, and we through one of them."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        assert trainer.process is not None
        self._filler = Path(f"/proc/{trainer.process.pid}/root{folder}/filler")

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def trainer(fresh_home: Path, bus_urls: Mapping[str, str], tmp_path: Path) -> Iterator[Trainer]:
    within = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, str(SIZE_BYTES), str(tmp_path))
    tried = subprocess.run([*within, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"needs user namespaces for a disk of its own: {tried.stderr.strip()}")
    with Trainer(fresh_home, bus_urls, settings={"data": str(tmp_path)}, within=within) as running:
        yield running


@pytest.fixture
def small_disk(trainer: Trainer, tmp_path: Path) -> SmallDisk:
    return SmallDisk(trainer, tmp_path)


TALKS = """
import os, time, trackside
run = trackside.init()
for step in run.steps(300):
    run.log(loss=1.0 / step)
    print("step", step, "x" * 100, flush=True)
    time.sleep(0.01)
"""
LAST_WORDS: Mapping[str, Reason] = {
    "": Reason.SUCCEEDED,
    "raise MemoryError": Reason.OOM_HOST,
    "os._exit(0)": Reason.USER_ERROR,
}


def test_a_run_on_a_full_disk_ends_as_what_it_is(trainer: Trainer, small_disk: SmallDisk) -> None:
    for last_words, reason in LAST_WORDS.items():
        job = trainer.assign(TALKS + last_words)
        trainer.running(job, step=3)
        small_disk.fill()
        outcome = trainer.ended(job, 30)
        small_disk.free()
        assert (outcome.reason, outcome.last_step) == (reason, 300), outcome
        told = "did not take the end of its journal" in (outcome.detail or "")
        assert told == ("_exit" not in last_words), outcome.detail
        assert len(trainer.steps(job)) < 300, "the disk was not full"


def test_an_attempt_that_the_disk_does_not_take_goes_back_once_and_waits_for_room(
    trainer: Trainer, small_disk: SmallDisk, bus_urls: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    small_disk.fill()
    with supervising(bus_urls["supervisor"], tmp_path_factory.mktemp("supervisor")):
        job_id = trainer.submit(steps_script(20))
        wait_until(lambda: (beat := trainer.beat()) and beat.blocked is not None, 10, "its slot is not blocked")
        back = wait_until(lambda: (job := trainer.store.job(job_id)).slot is None and job.attempt > 0 and job, 10, "")
        assert back
        (attempt,) = trainer.store.attempts(back)
        assert attempt.outcome is not None
        assert attempt.outcome.reason is Reason.PREEMPTED
        assert "No space left on device" in (attempt.outcome.detail or "")
        supervised(trainer, rounds=3)
        waiting = trainer.store.job(job_id)
        assert (waiting.attempt, waiting.failures) == (1, 0), "it was given to a host that cannot take it"
        small_disk.free()
        wait_until(lambda: trainer.store.job(job_id).state is JobState.SUCCEEDED, 30, "it does not run")
        assert trainer.store.job(job_id).attempt == 2
