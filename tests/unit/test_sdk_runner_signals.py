"""What a signal does to an attempt's process, whoever sent it and whatever the script is at."""

from __future__ import annotations

import signal

import pytest

from attempts import LIMIT_S, Attempt, Attempts
from trackside.sdk.page import Command
from trackside.testing import wait_until


def test_sigterm_stops_at_the_next_boundary_for_the_reason_on_the_page(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import time, trackside\n"
        "for step in trackside.init().steps(10**6):\n"
        "    time.sleep(0.01)\n"
        "    trackside.log(step_end=1)\n"
    )
    wait_until(lambda: attempt.page.completed >= 3, LIMIT_S, "the attempt never made three steps")
    attempt.page.command = Command.CANCEL
    attempt.send(signal.SIGTERM)
    assert attempt.end()[0] == 75
    assert attempt.outcome == "cancelled"
    assert attempt.records("end")[0]["s"] == len(attempt.records("m"))


STANDS_STILL = (
    "import pathlib, time, trackside\n"
    "for step in trackside.init().steps(60):\n"
    "    while step == 4 and not pathlib.Path('go').exists():\n"
    "        pathlib.Path('stands').touch()\n"
    "        time.sleep(0.01)\n"
    "print('all')\n"
)


def stands_still(attempts: Attempts) -> Attempt:
    """An attempt within its fourth step: that the third is completed is told before its boundary is over."""
    attempt = attempts.script(STANDS_STILL)
    wait_until((attempts.root / "work" / "stands").exists, LIMIT_S, "the attempt never came to its fourth step")
    return attempt


def test_a_sigterm_that_comes_after_its_wish_was_taken_back_stops_nothing(attempts: Attempts) -> None:
    attempt = stands_still(attempts)
    attempt.page.command = Command.PAUSE
    attempt.page.signals()
    attempt.page.command = Command.NONE
    attempt.send(signal.SIGTERM)
    (attempts.root / "work" / "go").touch()
    assert attempt.end() == (0, "all\n", "")


@pytest.mark.parametrize("commands", [(Command.PAUSE, Command.NONE), (Command.PAUSE,)])
def test_a_stranger_s_sigterm_stops_it_whatever_the_page_has_told_of_pauses(
    attempts: Attempts, commands: tuple[Command, ...]
) -> None:
    attempt = stands_still(attempts)
    for command in commands:
        attempt.page.command = command
    attempt.send(signal.SIGTERM)
    (attempts.root / "work" / "go").touch()
    assert attempt.end()[0] == 75
    assert (attempt.outcome, attempt.records("end")[0]["s"]) == ("preempted", 4)


def test_sigterm_stops_an_unmodified_script_at_once_and_sigint_is_left_to_the_worker(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import time, pathlib\n"
        "pathlib.Path('ready').touch()\n"
        "try:\n"
        "    time.sleep(60)\n"
        "except Exception:\n"
        "    print('swallowed')\n"
    )
    wait_until((attempts.root / "work" / "ready").exists, LIMIT_S, "the script never started")
    attempt.send(signal.SIGINT)
    attempt.send(signal.SIGTERM)
    assert attempt.end()[:2] == (75, "")
    assert attempt.outcome == "preempted"


def test_a_child_that_the_script_forked_dies_of_sigterm_by_itself(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, signal, time\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    time.sleep(60)\n"
        "    os._exit(0)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert attempt.end()[:2] == (0, "-15\n")
    assert attempt.outcome == "succeeded"


def test_a_hanging_attempt_shows_its_stacks_when_asked(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import time, pathlib\ndef stuck():\n    pathlib.Path('ready').touch()\n    time.sleep(60)\nstuck()\n"
    )
    wait_until((attempts.root / "work" / "ready").exists, LIMIT_S, "the script never started")
    attempt.send(signal.SIGUSR2)
    stacks = attempt.context.attempt_dir / "stacks.txt"
    wait_until(lambda: "in stuck" in stacks.read_text(), LIMIT_S, "no stack of the hanging function was written")


def test_a_stop_while_threads_are_joined_is_a_stop(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import pathlib, threading, time\n"
        "def work():\n"
        "    while threading.main_thread().is_alive():\n"
        "        time.sleep(0.01)\n"
        "    pathlib.Path('joined').touch()\n"
        "    time.sleep(60)\n"
        "threading.Thread(target=work).start()\n"
    )
    wait_until((attempts.root / "work" / "joined").exists, LIMIT_S, "the script's thread was never joined")
    attempt.send(signal.SIGTERM)
    assert attempt.end()[0] == 75
    assert attempt.outcome == "preempted"
