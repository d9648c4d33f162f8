"""Ctrl-C and its like at moments when they would cut short what may not be."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from attempts import LIMIT_S
from trackside.cli.stops import Stops, taken
from trackside.cli.throwaway import end


def _run(number: signal.Signals, stops: Stops, ended: list[bool]) -> None:
    try:
        stops.let_in()
        signal.raise_signal(number)
    finally:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        ended.append(True)


@pytest.mark.usefixtures("hangs_up")
@pytest.mark.parametrize(
    ("number", "error", "code"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, SystemExit, 143), (signal.SIGHUP, SystemExit, 129)],
)
def test_the_first_signal_ends_what_runs_and_a_second_does_not_cut_its_end_short(
    number: signal.Signals, error: type[BaseException], code: int
) -> None:
    ended: list[bool] = []
    with taken() as stops, pytest.raises(error):
        _run(number, stops, ended)
    assert (ended, stops.exit_code) == ([True], code)


def test_a_signal_that_comes_while_something_is_made_is_heeded_once_it_can_be_ended() -> None:
    with taken() as stops:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stops.let_in()


def test_a_signal_takes_the_place_of_one_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken() as stops:
        stops.let_in()
        with suppress(KeyboardInterrupt):  # as if it had been raised within a destructor
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("trackside.cli.stops._LOST_S", 0.0)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        assert stops.exit_code == 143


@pytest.mark.usefixtures("hangs_up")
def test_the_end_of_a_terminal_that_is_told_twice_hurries_nothing() -> None:
    hurried: list[bool] = []
    with taken() as stops:
        stops.hurry = lambda: hurried.append(True)
        signal.raise_signal(signal.SIGHUP)
        assert hurried == []
        signal.raise_signal(signal.SIGINT)
    assert hurried == [True]


def test_under_nohup_the_end_of_the_terminal_is_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with taken() as stops:
            stops.let_in()
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# The first SIGTERM is answered by one to whoever sent it, and ends nothing; only the second does.
STOPS_AT_THE_SECOND = """
import os, signal

def stop(*_):
    if came:
        os._exit(7)
    came.append(1)
    os.kill(os.getppid(), signal.SIGTERM)

came = []
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_a_signal_that_comes_while_a_system_stops_hurries_it_and_leaves_nothing_running() -> None:
    command = [sys.executable, "-c", STOPS_AT_THE_SECOND]
    with taken() as stops, subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            end(process, stops)
            assert process.returncode == 7
        finally:
            process.kill()


# The reader of its output does not read, so both the command and the last flush wait for ever.
NOBODY_READS = """
import signal, sys
from trackside.cli.exits import flush_stdout

class Blocked:
    def flush(self):
        signal.raise_signal(signal.SIGINT)
    def fileno(self):
        return 1

out, sys.stdout = sys.stdout, Blocked()
code = flush_stdout(0)
sys.stdout = out
sys.exit(code)
"""


def test_ctrl_c_while_the_last_output_is_written_is_130_without_a_traceback() -> None:
    command = [sys.executable, "-c", NOBODY_READS]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (answer.returncode, answer.stderr) == (130, "")
