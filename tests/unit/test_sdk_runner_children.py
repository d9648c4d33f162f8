"""A child that the script forks by itself comes to the runner's end too, and it is not the attempt's."""

from __future__ import annotations

import pytest

from attempts import Attempts
from trackside.sdk.page import Phase


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


def test_a_child_that_leaves_its_copy_of_the_loop_ends_no_step_of_the_attempt_s(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, signal, sys, trackside\n"
        "run = trackside.init()\n"
        "for step in run.steps(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        break\n"
        "    os.waitpid(pid, 0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert attempt.end()[0] == -9
    assert attempt.page.phase is Phase.STEPPING


def test_a_child_has_its_own_exit_code(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, sys\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    code, out, _ = attempt.end()
    assert (code, out) == (0, "7\n")


def test_a_child_ends_though_a_lock_came_with_it_whose_holder_did_not(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import io, os, signal, threading\n"
        "class Raw(io.FileIO):\n"
        "    def write(self, data):\n"
        "        holds.set()\n"
        "        go.wait()\n"
        "        return super().write(data)\n"
        "holds, go = threading.Event(), threading.Event()\n"
        "file = io.BufferedWriter(Raw('out.txt', 'w'))\n"
        "file.write(b'result')\n"
        "threading.Thread(target=file.flush).start()\n"
        "holds.wait()\n"
        "pid = os.fork()\n"
        "if pid:\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)\n"
        "    go.set()\n"
        "else:\n"
        "    signal.alarm(15)\n"
    )
    code, out, _ = attempt.end()
    assert (code, out) == (0, "0\n")
    assert (attempt.outcome, (attempt.context.work_dir / "out.txt").read_text()) == ("succeeded", "result")
