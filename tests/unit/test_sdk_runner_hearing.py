"""When an attempt's process hears of a SIGTERM: never while it makes out how the attempt ended."""

from __future__ import annotations

import pytest

from attempts import Attempts


@pytest.mark.parametrize("own", ["", "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"], ids=["ours", "own"])
def test_a_sigterm_that_comes_while_an_error_is_told_does_not_hide_the_error(attempts: Attempts, own: str) -> None:
    attempt = attempts.script(
        f"import os, signal, sys\n{own}"
        "class Broken(Exception):\n"
        "    def __str__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return 'the data are not there'\n"
        "raise Broken\n"
    )
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["message"]) == ("user_error", "the data are not there")


def test_a_sigterm_that_waited_while_an_error_was_told_keeps_its_threads_from_being_joined(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, signal, threading\n"
        "class Broken(Exception):\n"
        "    def __str__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return 'the data are not there'\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "raise Broken\n"
    )
    assert attempt.end()[0] == 1
    assert attempt.outcome == "user_error"
