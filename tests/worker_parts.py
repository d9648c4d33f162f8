"""What the tests of a worker's parts share: a slot, a bus that nobody serves, a running job, a process that hangs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from makers import a_job
from trackside.models import JobState, Slot

SLOT = Slot(id="box-cpu0", host="box", kind="cpu", storage="s1")
URL = "redis://127.0.0.1:1"
JOB = a_job(state=JobState.RUNNING, attempt=1, slot=SLOT.id)


def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    """For a fixture: a process that ends with the test."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()
