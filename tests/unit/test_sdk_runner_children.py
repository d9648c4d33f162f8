"""A child that the script forks by itself comes to the runner's end too, and it is not the attempt's."""

from __future__ import annotations

import pytest

from attempts import Attempts


@pytest.mark.parametrize("end", ["sys.exit()", "raise ValueError('a child has failed')", "pass", "os._exit(0)"])
def test_the_end_of_a_forked_child_is_not_told_as_the_attempt_s(attempts: Attempts, end: str) -> None:
    attempt = attempts.script(
        "import os, signal, sys, trackside\n"
        "run = trackside.init()\n"
        "for step in run.steps(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        break\n"
        "    os.waitpid(pid, 0)\n"
        "if pid:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{end}\n"
    )
    assert attempt.end()[0] == -9
    assert (attempt.outcome, attempt.page.end) == (None, None)
