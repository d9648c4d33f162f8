"""An attempt is made ready while its worker goes on beating, however slow the disk is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from trackside.models import Job, Reason
from trackside.testing import wait_until
from trainer_harness import Trainer, steps_script

TTL_S = 2.0
BEATS_FOR_S = 1.5 * TTL_S  # longer than a beat lasts, so that none of them is from before


@pytest.fixture
def trainer(fresh_home: Path, bus_urls: Mapping[str, str]) -> Iterator[Trainer]:
    with Trainer(fresh_home, bus_urls, settings={"beat_ttl_s": TTL_S}) as running:
        yield running


def given_on_a_slow_disk(trainer: Trainer) -> tuple[Job, Callable[[], None]]:
    """A job whose host's copy of the snapshot is a pipe: it is read once the returned function has been called."""
    job_id = trainer.submit(steps_script(20))
    sha256 = trainer.store.job(job_id).spec.snapshot
    assert sha256 is not None
    archive, copy = trainer.store.snapshot(sha256), trainer.home / "snapshots" / f"{sha256}.tar.gz"
    copy.parent.mkdir(parents=True)
    os.mkfifo(copy)

    def goes_on() -> None:
        copy.write_bytes(archive)

    return trainer.give(job_id), goes_on


def beats_on(trainer: Trainer, job: Job) -> None:
    """Wait until the worker has beaten for longer than a beat lasts, and never was without one."""
    first = wait_until(lambda: (beat := trainer.beat()) and beat.job == job.id and beat, 10, "the attempt is not told")
    assert first

    def later() -> bool:
        beat = trainer.beat()
        assert beat is not None, "the worker fell silent"
        return beat.at_ms - first.at_ms > BEATS_FOR_S * 1000

    wait_until(later, 20, "the worker does not beat")


def test_a_worker_beats_while_a_slow_disk_makes_its_attempt_ready(trainer: Trainer) -> None:
    job, goes_on = given_on_a_slow_disk(trainer)
    beats_on(trainer, job)
    assert trainer.output(job) == ""
    goes_on()
    assert trainer.ended(job).reason is Reason.SUCCEEDED
    assert trainer.steps(job) == list(range(1, 21))
    attempt = trainer.attempt(job)
    waited_ms = (attempt.ended_at_ms or 0) - (attempt.started_at_ms or 0) - trainer.store.job(job.id).ran_ms
    assert waited_ms > BEATS_FOR_S * 1000, "what came before its process counts as its running time"


def test_no_other_user_of_the_disk_reads_what_a_job_is_and_does(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(1))
    assert trainer.ended(job).reason is Reason.SUCCEEDED
    jobs = trainer.home / "jobs"
    attempt = jobs / job.id / "attempts" / "1"
    for folder in (jobs, jobs / job.id, attempt.parent, attempt, attempt / "work"):
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_a_job_that_is_cancelled_while_its_attempt_is_made_ready_never_starts(trainer: Trainer) -> None:
    job, goes_on = given_on_a_slow_disk(trainer)
    beats_on(trainer, job)
    trainer.store.cancel(job.id)
    beats_on(trainer, job)
    goes_on()
    assert trainer.ended(job).reason is Reason.CANCELLED
    assert trainer.output(job) == ""


def gives_up(trainer: Trainer, job: Job, reason: Reason) -> None:
    """The attempt ends though its folders never become ready, and the slot says why it takes nothing."""
    outcome = trainer.ended(job)
    assert outcome.reason is reason
    assert trainer.attempt(job).outcome is not None
    wait_until(
        lambda: (beat := trainer.beat()) and beat.job is None and "disk hangs" in (beat.blocked or ""), 10,
        "the slot does not say that its disk hangs",
    )  # fmt: skip


@pytest.mark.parametrize("asked", [False, True], ids=["by itself", "cancelled"])
def test_a_disk_that_hangs_holds_no_job_for_ever(fresh_home: Path, bus_urls: Mapping[str, str], asked: bool) -> None:
    limits = {"startup_limit_s": 60.0, "stop_grace_s": 0.5} if asked else {"startup_limit_s": 1.0}
    with Trainer(fresh_home, bus_urls, settings={"beat_ttl_s": TTL_S, **limits}) as trainer:
        job, goes_on = given_on_a_slow_disk(trainer)
        if asked:
            beats_on(trainer, job)
            trainer.store.cancel(job.id)
        gives_up(trainer, job, Reason.CANCELLED if asked else Reason.PREEMPTED)
        goes_on()
        wait_until(lambda: (beat := trainer.beat()) and beat.blocked is None, 10, "the slot did not open again")
        again = trainer.assign(steps_script(3))
        assert trainer.ended(again).reason is Reason.SUCCEEDED
        assert trainer.output(job) == "", "it was started after all"
