"""A stop that was obeyed is how the attempt ended, whatever the script makes of it."""

from __future__ import annotations

import pytest

from attempts import Attempts
from trackside.sdk.page import Command

ASKS = "os.kill(os.getpid(), signal.SIGTERM)"  # a stranger's: it is heeded at the next boundary
LOOP = f"for step in run.steps(): {ASKS}\n"
INIT = "import os, signal, sys, trackside\nfrom trackside.errors import StopRequested\nrun = trackside.init()\n"


@pytest.mark.parametrize(
    "code",
    [
        f"try:\n    {LOOP}except:\n    pass\n",
        f"try:\n    {LOOP}except StopRequested:\n    sys.exit()\n",
        f"try:\n    {LOOP}finally:\n    1 / 0\n",
        f"try:\n    {LOOP}except:\n    pass\nraise ValueError('no results')\n",
        f"try:\n    {ASKS}\nexcept BaseException as stop:\n    told = stop\nraise BaseExceptionGroup('', [told])\n",
        f"try:\n    {ASKS}\nexcept:\n    pass\n",
        f"class Loud:\n    def __del__(self): {ASKS}\nloud = Loud()\ndel loud\n",
        f"import atexit\natexit.register(lambda: {ASKS})\n",
        f"try:\n    {LOOP}finally:\n    raise MemoryError\n",
    ],
    ids=["swallowed", "left", "finally", "failed", "group", "unmodified", "destructor", "exit handler", "memory"],
)
def test_a_stop_that_the_script_swallows_is_a_stop(attempts: Attempts, code: str) -> None:
    attempt = attempts.script(INIT + code)
    assert attempt.end()[0] == 75
    assert attempt.outcome == "preempted"


def test_an_error_that_came_before_the_stop_is_the_error(attempts: Attempts) -> None:
    attempt = attempts.script(f"{INIT}import atexit\natexit.register(lambda: {ASKS})\nraise ValueError('no data')\n")
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["message"]) == ("user_error", "no data")


def test_a_pause_that_was_taken_back_is_no_stop(attempts: Attempts) -> None:
    attempt = attempts.script(
        f"{INIT}from trackside.sdk.page import Command\n"
        "page = run._page\n"
        "page.command = Command.PAUSE\n"
        "page.signals()\n"
        f"try:\n    {ASKS}\nexcept StopRequested:\n    page.command = Command.NONE\n"
        "for step in run.steps(3): pass\n"
    )
    assert attempt.end()[0] == 0
    assert attempt.outcome == "succeeded"


def test_a_divergence_that_the_script_swallows_is_a_divergence(attempts: Attempts) -> None:
    attempt = attempts.script(
        f"{INIT}try:\n    for step in run.steps(): run.log(loss=float('nan'))\nexcept:\n    pass\n"
    )
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.records("end")[0]["bad_step"]) == ("diverged", 1)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (
            "signal.signal(signal.SIGTERM, lambda *_: seen.append(1)); {asked}signal.signal(signal.SIGTERM, old)",
            "succeeded",
        ),
        ("signal.signal(signal.SIGTERM, interrupt); {asked}", "user_error"),
    ],
    ids=["handler restored", "handler raises"],
)
def test_a_wish_that_a_handler_of_the_script_s_own_took_may_be_why_it_left(
    attempts: Attempts, code: str, outcome: str
) -> None:
    asked = "print('ready', flush=True)\nwhile not seen: time.sleep(0.01)\n"
    attempt = attempts.script(
        "import signal, time\nseen = []\ndef interrupt(*_): raise KeyboardInterrupt\n"
        f"old = signal.getsignal(signal.SIGTERM)\n{code.format(asked=asked)}\n"
    )
    assert attempt.process is not None
    assert attempt.process.stdout is not None
    assert attempt.process.stdout.readline() == "ready\n"
    page = attempt.page
    page.command = Command.PREEMPT
    page.signals()
    attempt.send(15)
    attempt.end()
    assert (attempt.outcome, attempt.records("end")[0]["early"]) == (outcome, True)
    assert page.end is not None
    assert page.end.early


@pytest.mark.parametrize(
    "deaf", ["signal.signal(15, signal.SIG_IGN)", "signal.pthread_sigmask(signal.SIG_BLOCK, [15])"]
)
def test_a_wish_that_the_script_never_heard_is_not_why_it_ended(attempts: Attempts, deaf: str) -> None:
    attempt = attempts.script(
        f"import os, signal, time\n{deaf}\nprint('ready', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.01)\n"
    )
    assert attempt.process is not None
    assert attempt.process.stdout is not None
    assert attempt.process.stdout.readline() == "ready\n"
    page = attempt.page
    page.command = Command.PREEMPT
    page.signals()
    attempt.send(15)
    (attempt.context.work_dir / "go").touch()
    assert attempt.end()[0] == 0
    assert (attempt.outcome, "early" in attempt.records("end")[0]) == ("succeeded", False)
