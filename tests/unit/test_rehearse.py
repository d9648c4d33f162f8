"""What a drill takes from an undisturbed run: how long a silence is a hang, what can be shown, how a disk is filled."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from makers import a_job, an_attempt
from trackside.cli.distress import files_at_most, newest_checkpoint_bytes, own_bytes, room_bytes
from trackside.cli.faults import FAULTS, Need
from trackside.cli.rehearse import Baseline, hang_s
from trackside.models import AttemptState, Batch, JobState, Outcome, Reason
from trackside.oracle import Entry, JobHistory

JOB = a_job("job-1", name="job", state=JobState.SUCCEEDED, attempt=1)
BASE = Baseline(
    series={}, summary={}, differing=(), interval=20, last_step=100, seconds=5.0, job=JOB, hang_s=3.0,
    checkpoint_bytes=400_000, own_bytes=100_000, saves=5,
)  # fmt: skip


def run_of(points: dict[int, int]) -> JobHistory:
    """An undisturbed run of a minute that logged these steps at these milliseconds."""
    outcome = Outcome(reason=Reason.SUCCEEDED, last_step=100)
    attempt = an_attempt(job=JOB.id, state=AttemptState.ENDED, ended_at_ms=60_000, outcome=outcome)
    batch = Batch(steps=tuple(points), at_ms=tuple(points.values()))
    return JobHistory(job=JOB, attempts=(attempt,), entries=(Entry(attempt=1, sequence=0, batch=batch),))


@pytest.mark.parametrize(
    ("points", "limit_s"),
    [
        ({1: 0, 2: 10, 3: 20, 4: 30}, 3.0),  # the floor
        ({1: 0, 2: 500, 3: 1000}, 10.0),  # twenty of the slowest step
        ({1: 0, 100: 10_000, 200: 20_000}, 30.0),  # three of the longest silence, where few steps are logged
        ({1: 0, 2: 10, 3: 4010, 4: 4020}, 80.0),
        ({}, 180.0),  # nothing logged: the whole run may have been one silence
    ],
)
def test_a_hang_is_a_silence_that_the_script_s_own_pace_does_not_explain(
    points: dict[int, int], limit_s: float
) -> None:
    assert hang_s(run_of(points)) == pytest.approx(limit_s)


@pytest.mark.parametrize(
    ("base", "need", "slots", "why"),
    [
        (BASE, Need.STEPS, 2, None),
        (replace(BASE, last_step=0), Need.STEPS, 2, "it counts no steps"),
        (BASE, Need.CHECKPOINTS, 2, None),
        (replace(BASE, saves=0), Need.CHECKPOINTS, 2, "it saves no checkpoint"),
        (replace(BASE, saves=2), Need.CHECKPOINTS, 2, "2 checkpoints, 3 are needed"),
        (BASE, Need.LARGE_CHECKPOINTS, 2, None),
        (replace(BASE, own_bytes=350_000), Need.LARGE_CHECKPOINTS, 2, "its checkpoints are not the largest files"),
        (BASE, Need.SLOTS, 2, None),
        (BASE, Need.SLOTS, 1, "it needs two slots"),
    ],
)
def test_what_a_script_cannot_show_is_said(base: Baseline, need: Need, slots: int, why: str | None) -> None:
    found = base.lacks(need, slots)
    assert found is None if why is None else str(found).startswith(why)


def test_a_full_disk_takes_journals_and_no_checkpoints(tmp_path: Path) -> None:
    home = tmp_path / "home"
    attempt, checkpoint = home / "jobs/job-1/attempts/1", home / "jobs/job-1/checkpoints/step-00000020-a1"
    for folder in (attempt / "work", checkpoint, checkpoint.with_name("step-00000010-a1")):
        folder.mkdir(parents=True)
    (attempt / "journal.jsonl").write_bytes(bytes(2_000))
    (attempt / "work" / "data.bin").write_bytes(bytes(90_000))
    os.utime(attempt / "work" / "data.bin", (1, 1))  # it came with the submitted folder
    (checkpoint / "model.pt").write_bytes(bytes(4_000))
    (checkpoint / "optimizer.pt").write_bytes(bytes(8_000))
    (checkpoint.with_name("step-00000010-a1") / "model.pt").write_bytes(bytes(50_000))
    assert newest_checkpoint_bytes(home, "job-1") == 8_000
    assert own_bytes(home, "job-1", since_ms=60_000) == 2_000
    assert 2_000 < room_bytes(8_000) < 8_000


def test_a_process_that_has_no_room_has_it_back_afterwards(tmp_path: Path) -> None:
    program = """
import sys
for line in sys.stdin:
    try:
        with open(sys.argv[1], "wb") as file:
            file.write(bytes(9_000))
    except OSError as error:
        print(error.errno, flush=True)
    else:
        print(0, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def tries() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        assert tries() == "0"
        with files_at_most(process.pid, 8_000):
            assert tries() == "27"  # EFBIG
        assert tries() == "0"
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == before


def test_each_fault_has_an_id_and_a_name_of_its_own() -> None:
    assert len({fault.id for fault in FAULTS}) == len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_operations_page_lists_the_faults_as_they_are() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    rows = page.partition("\n| fault | done |")[2].splitlines()[2:]
    listed = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[: len(FAULTS)]]
    assert listed == [
        [f"`{fault.id}`", fault.name, "quick" if fault.quick else "all", ", ".join(sorted(fault.needs))]
        for fault in FAULTS
    ]
    assert not rows[len(FAULTS)].startswith("|")
