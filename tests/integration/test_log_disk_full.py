"""Services whose logs go to a full disk: they cannot say anything, and do all else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from dashboard.served import serves
from server_harness import free_port
from trackside.bus import beats
from trackside.bus.client import connect
from trackside.models import Beat, JobSpec, JobState, Program, Role
from trackside.snapshots import pack
from trackside.store import Store
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def serving(home: Path, url: str, *words: str, port: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A service whose every line meets ENOSPC."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
    env |= {"TRACKSIDE_REDIS_URL": url, "TRACKSIDE_HOST": "box", "TRACKSIDE_PROFILE": "test"}
    env |= {"TRACKSIDE_STOP_GRACE_S": "10", "TRACKSIDE_DASHBOARD_PORT": str(port)}
    command = [sys.executable, "-m", "trackside", "--home", str(home), *words]
    with Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=full, stderr=full)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_supervisor_and_trainer_go_on_where_log_and_ledger_meet_a_full_disk(
    bus_urls: Mapping[str, str], fresh_home: Path, tmp_path: Path
) -> None:
    store = Store(connect(bus_urls["submitter"]), by="cli:test")
    (fresh_home / "ledger").write_text("no folder can be made here")  # so that the ledger fails as well, and is told
    (tmp_path / "train.py").write_text("print('done')\n")
    snapshot = pack(tmp_path, max_bytes=1 << 20)

    def beat(role: Role) -> Beat | None:
        for process in (supervisor, trainer):
            assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        return next((each for each in beats.read(store.client).values() if each and each.role is role), None)

    with (
        serving(fresh_home, bus_urls["supervisor"], "supervisor") as supervisor,
        serving(fresh_home, bus_urls["trainer"], "trainer", "--slots", "cpu:1") as trainer,
    ):
        for job_id in ("first", "second"):
            worker = wait_until(lambda: beat(Role.WORKER), 40, "no worker beats")
            store.submit(
                job_id,
                job_id,
                JobSpec(program=Program(kind="script", target="train.py"), snapshot=snapshot.sha256),
                snapshot.data,
            )
            wait_until(lambda: beat(Role.AGENT) and store.job(job_id).state.terminal, 20, f"{job_id} does not end")  # noqa: B023 -- called at once
            assert store.job(job_id).state is JobState.SUCCEEDED
            assert worker is not None
            os.kill(worker.pid, 9)
            wait_until(lambda: (now := beat(Role.WORKER)) and now.pid != worker.pid, 10, "no other worker")  # noqa: B023 -- called at once
        wait_until(lambda: (now := beat(Role.SUPERVISOR)) and now.leader, 20, "nobody leads")
    store.client.close()


def test_the_dashboard_starts_serves_and_stops_where_its_output_meets_a_full_disk(
    bus_urls: Mapping[str, str], fresh_home: Path
) -> None:
    port = free_port()
    with serving(fresh_home, bus_urls["dashboard"], "dashboard", port=port) as dashboard:

        def answers() -> bool:
            assert dashboard.poll() is None, f"it ended with {dashboard.returncode}"
            return serves(port)

        wait_until(answers, 40, "it does not answer")
