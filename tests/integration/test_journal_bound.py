"""A journal that has reached its bound: training goes on, checkpoints are told, and everybody sees what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server_harness import short_home
from system import TRAIN, System, running_system
from trackside.models import EventKind, JobState, Role

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

STEPS, EVERY = 700, 50
BOUND = 10_000  # bytes: about 150 steps


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    settings = {"backoff_first_s": "0.2", "journal_max_bytes": str(BOUND)}
    with short_home() as home, running_system(home, "--slots", "cpu:1", "--no-dashboard", **settings) as system:
        yield system


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project") / "train.py"
    path.write_text(TRAIN)
    return path


def test_a_full_journal_stops_nothing_and_says_what_it_left_out(system: System, script: Path) -> None:
    job_id = system.submit(script, args=("--steps", str(STEPS), "--every", str(EVERY), "--step-ms", "2"))
    job = system.ended(job_id)
    assert job.state is JobState.SUCCEEDED
    saved = [event.data["step"] for event in system.events(job_id) if event.kind is EventKind.CHECKPOINT]
    assert saved[-1] == STEPS
    assert set(saved) <= set(range(EVERY, STEPS + 1, EVERY))

    notes = [event.data["text"] for event in system.events(job_id) if event.data.get("text")]
    begin, end = (note for note in notes if "bound" in note)
    assert f"bound of {BOUND} bytes" in begin
    first = int(begin.partition("from step ")[2].split()[0])
    series = list(system.series(job_id, "loss"))
    assert series[: first - 1] == list(range(1, first))
    assert series[first - 1 : -1] == list(range(first, STEPS, 101))
    assert series[-1] == STEPS
    assert end.startswith(f"{STEPS - len(series)} metrics records were left out")

    told = system.cli("why", job_id)
    assert "TRACKSIDE_JOURNAL_MAX_BYTES" in told
    assert f"{STEPS - len(series)} metrics records were left out" in told.replace("\n", " ")
    path = system.home / "jobs" / job_id / "attempts" / "1" / "journal.jsonl"
    assert BOUND < path.stat().st_size < 2 * BOUND


def test_a_run_that_is_killed_beyond_the_bound_resumes_and_its_series_is_the_same_where_there_is_one(
    system: System, script: Path
) -> None:
    args = ("--steps", str(STEPS), "--every", str(EVERY))
    whole = system.submit(script, args=(*args, "--step-ms", "1"))
    assert system.ended(whole).state is JobState.SUCCEEDED
    job_id = system.submit(script, args=(*args, "--step-ms", "5"))
    beat = system.stepping(job_id, 350)
    assert beat.role is Role.WORKER
    assert beat.attempt_pid is not None
    system.kill(beat.attempt_pid)
    assert system.ended(job_id).state is JobState.SUCCEEDED

    resumed = system.attempts(job_id)[1].resumed_step
    assert resumed is not None
    assert resumed >= 300 - EVERY
    assert system.summary(job_id)["digest"] == system.summary(whole)["digest"]
    reference, series = system.series(whole, "loss"), system.series(job_id, "loss")
    both = reference.keys() & series.keys()
    assert {step: series[step] for step in both} == {step: reference[step] for step in both}
    assert set(range(resumed + 1, resumed + 100)) <= series.keys(), "the next attempt's journal begins anew"
