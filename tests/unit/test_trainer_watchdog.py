"""The watchdog asks a silent process for its stacks, gives its verdict once they are there, and takes nothing amiss."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trackside import processes
from trackside.config import Settings
from trackside.sdk.page import ControlPage, Phase
from trackside.testing import wait_until
from trackside_trainer.watchdog import Hung, Watchdog

LIMIT_S = 0.2
PROCESS = """
import faulthandler, signal, sys, time
answers = sys.argv[1] == "answers"
stacks = open(sys.argv[2], "a")
if answers:
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
else:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


class Watched:
    def __init__(self, root: Path, answers: str) -> None:
        self.stacks, self.output = root / "stacks.txt", root / "output.log"
        self.output.touch()
        command = [sys.executable, "-c", PROCESS, answers, str(self.stacks)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self.page = ControlPage.in_memory()
        self.page.first, self.page.phase = 1, Phase.STEPPING
        self.notes: list[str] = []
        settings = Settings(home=root, profile="test", stall_limit_s=LIMIT_S)
        self.watchdog = Watchdog(settings, self.page, self.process.pid, self.stacks, self.output)
        for step in range(3):
            self.page.boundary(step)
            assert self.look() is None

    def look(self) -> Hung | None:
        return self.watchdog.look(self.notes.append)


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(tmp_path, request.param)
    yield watched
    watched.process.kill()
    watched.process.communicate()


@pytest.mark.parametrize("watched", ["answers"], indirect=True)
def test_the_verdict_comes_with_the_stacks(watched: Watched) -> None:
    last_s = (watched.page.boundary_ns or 0) / 1e9
    hung = wait_until(watched.look, 5, "no verdict")
    assert hung is not None
    assert time.monotonic() - last_s > LIMIT_S
    assert re.match(r"no step for [\d.]+ s \(limit 0\.2 s\)", hung.detail)
    state, stacks = hung.evidence
    assert state == "the process was sleeping"
    assert "line 11 in <module>" in stacks
    told = watched.output.read_text()
    assert "line 11 in <module>" in told
    assert "--stall-limit" in told


@pytest.mark.parametrize("watched", ["ignores"], indirect=True)
def test_a_process_that_does_not_answer_is_not_waited_for_long(watched: Watched) -> None:
    hung = wait_until(watched.look, 5, "no verdict")
    assert hung is not None
    assert hung.evidence[1] == "stacks of its threads: it did not answer"


@pytest.mark.parametrize("watched", ["ignores"], indirect=True)
def test_a_step_while_the_stacks_are_awaited_ends_it(watched: Watched) -> None:
    def asked() -> bool:
        assert watched.look() is None
        return watched.watchdog._stalled is not None

    wait_until(asked, 5, "the silence was not noticed")
    watched.page.boundary(4)
    assert watched.look() is None
    (note,) = watched.notes
    assert note.endswith("; it went on by itself")
    assert watched.look() is None


@pytest.mark.parametrize("watched", ["ignores"], indirect=True)
def test_a_stopped_process_is_known_as_one(watched: Watched) -> None:
    watched.process.send_signal(signal.SIGSTOP)
    hung = wait_until(watched.look, 5, "no verdict")
    assert hung is not None
    assert hung.evidence[0] == "the process was stopped by a signal (SIGSTOP)"
    assert hung.detail.endswith("; the process was stopped by a signal (SIGSTOP)"), "nothing in the script is behind it"


@pytest.mark.parametrize("watched", ["answers"], indirect=True)
def test_a_process_that_a_signal_has_stopped_is_told_of_once_long_before_any_limit(watched: Watched) -> None:
    watched.page.phase = Phase.STARTING  # after its loop: nothing is a hang
    watched.process.send_signal(signal.SIGSTOP)

    def told() -> bool:
        assert watched.look() is None
        return bool(watched.notes)

    wait_until(told, 10, "nobody said that it is stopped")
    pid = watched.process.pid
    says = f"the process is stopped by a signal (SIGSTOP): `kill -CONT {pid}` on its host lets it go on"
    assert watched.notes == [says]
    watched.process.send_signal(signal.SIGCONT)
    wait_until(lambda: (found := processes.look(pid)) is not None and found.state != "T", 5, "it is still stopped")
    assert watched.look() is None
    assert watched.notes == [says]
