"""A server that has lost a job's record: its worker tells the end once the record is back, and waits quietly for it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from trackside.bus import keys
from trackside.models import Reason
from trackside.processes import look
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trainer_harness import Trainer, lives, trainer_on

TTL_S = 2.0
WAITS_IN_VAIN_S = 1.5 * TTL_S  # longer than a beat lasts
QUIET = 0.3  # of a core: it takes 0.04, and 0.88 where its loop does not sleep
LAST = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('done')\n"


@pytest.fixture
def trainer(redis_server: EmbeddedServer) -> Iterator[Trainer]:
    with trainer_on(redis_server, beat_ttl_s=TTL_S) as trainer:
        yield trainer


def cpu_s(pid: int) -> float:
    found = look(pid)
    assert found is not None, "the worker is gone"
    return found.cpu_ticks / os.sysconf("SC_CLK_TCK")


def test_an_end_is_told_once_the_record_is_back_and_the_wait_for_it_takes_no_core(trainer: Trainer) -> None:
    job = trainer.assign(LAST)
    go = trainer.home / "jobs" / job.id / "attempts" / "1" / "work" / "go"
    wait_until(go.parent.is_dir, 20, "the attempt has no folder")
    pid = trainer.running(job, step=0)
    record = keys.job(job.id)
    trainer.tester.rename(record, f"{record}-aside")
    go.touch()
    wait_until(lambda: '"server_is_behind"' in trainer.log.read_text(), 20, "nothing is said of the lost record")
    wait_until(lambda: not lives(pid), 20, "its process did not end")
    first = wait_until(trainer.beat, 10, "no worker beats")
    assert first is not None
    began_s = cpu_s(first.pid)

    def waited_s() -> float:
        beat = trainer.beat()
        assert beat is not None, "the worker fell silent"
        return (beat.at_ms - first.at_ms) / 1000

    wait_until(lambda: waited_s() > WAITS_IN_VAIN_S, 30, "it does not beat")
    share = (cpu_s(first.pid) - began_s) / waited_s()
    assert share < QUIET, f"it takes {share:.2f} of a core while it has nothing to do"

    trainer.tester.rename(f"{record}-aside", record)
    assert trainer.ended(job).reason is Reason.SUCCEEDED
    assert trainer.output(job) == "done\n"
