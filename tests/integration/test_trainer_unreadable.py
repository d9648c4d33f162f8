"""Attempts whose files cannot be read any more: they end, and nobody ends with them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from trackside.models import Reason
from trackside.testing import wait_until
from trainer_harness import Trainer, steps_script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

# Root reads whatever its permissions say, but nobody reads a folder.
REPLACED = """
import json, os, pathlib, time
journal = pathlib.Path(json.loads(pathlib.Path(os.environ["TRACKSIDE_ATTEMPT"]).read_text())["journal"])
journal.unlink(missing_ok=True)
journal.mkdir()
time.sleep({pause})
"""


@pytest.mark.parametrize("ends", ["by itself", "with its worker", "with its worker and its agent"])
def test_a_journal_that_became_a_folder_ends_nobody_but_its_attempt(
    fresh_home: Path, bus_urls: Mapping[str, str], ends: str
) -> None:
    with Trainer(fresh_home, bus_urls) as trainer:
        assert trainer.process is not None
        agent, worker = trainer.process.pid, trainer.worker_pid()
        job = trainer.assign(REPLACED.format(pause=0 if ends == "by itself" else 600))
        journal = fresh_home / "jobs" / job.id / "attempts" / "1" / "journal.jsonl"
        wait_until(journal.is_dir, 20, "the script does not come so far")
        if ends == "with its worker and its agent":
            os.kill(agent, signal.SIGSTOP)  # or it would see to it first
        if ends != "by itself":
            os.kill(worker, signal.SIGKILL)
        if ends == "with its worker and its agent":
            trainer.kill_agent()
            trainer.start()
            agent = trainer.process.pid

        outcome = trainer.ended(job)
        assert outcome.reason in ({Reason.SUCCEEDED} if ends == "by itself" else {Reason.KILLED, Reason.LOST})
        assert trainer.ended(trainer.assign(steps_script(2))).reason is Reason.SUCCEEDED
        assert (trainer.process.pid, trainer.process.poll()) == (agent, None)
        assert (trainer.worker_pid() == worker) is (ends == "by itself")
        taken = fresh_home / "run" / "taken"
        wait_until(lambda: not list(taken.glob("*.json")), 10, "an attempt that is over is still written down as taken")
