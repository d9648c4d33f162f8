"""An attempt's process tells exactly how it ended, or, when it died, nothing at all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attempts import Attempts
from trackside.sdk.journal import JournalReader
from trackside.sdk.page import End, Phase


def test_the_end_line_comes_after_threads_and_exit_handlers(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import atexit, threading, time, trackside\n"
        "atexit.register(lambda: (time.sleep(0.1), trackside.log(at_exit=1)))\n"
        "def late():\n"
        "    while threading.main_thread().is_alive(): time.sleep(0.01)\n"
        "    trackside.log(thread=1)\n"
        "threading.Thread(target=late).start()\n"
        "for step in trackside.init().steps(2): trackside.log(loss=1)\n"
    )
    assert attempt.end()[0] == 0
    kinds = [(r["k"], *r.get("m", {})) for _, r in JournalReader(attempt.context.journal)]
    assert kinds == [("begin",), ("m", "loss"), ("m", "loss"), ("m", "thread"), ("m", "at_exit"), ("end",)]
    assert attempt.outcome == "succeeded"
    assert attempt.records("end")[0]["s"] == 2
    assert attempt.page.phase is Phase.ENDED


@pytest.mark.parametrize(
    "death", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.execv('/bin/true', ['true'])", "os.abort()"]
)
def test_a_process_that_dies_on_the_way_leaves_no_end_line(attempts: Attempts, death: str) -> None:
    attempt = attempts.script(f"import os, trackside\ntrackside.init()\n{death}")
    attempt.end()
    assert attempt.outcome is None


def test_an_error_is_printed_and_told_without_our_frames(attempts: Attempts) -> None:
    attempt = attempts.script("def step():\n    raise ValueError('no such thing')\nstep()\n")
    code, _, err = attempt.end()
    assert (code, attempt.outcome) == (1, "user_error")
    assert (attempt.error["type"], attempt.error["message"]) == ("ValueError", "no such thing")
    assert attempt.error["traceback"] == err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "train.py" in err
    assert "trackside/sdk" not in err


@pytest.mark.parametrize(
    ("code", "outcome", "kind"),
    [
        ("raise SystemExit(0)", "succeeded", None),
        ("import sys; sys.exit()", "succeeded", None),
        ("raise SystemExit(3)", "user_error", "SystemExit"),
        ("raise SystemExit('bad flag')", "user_error", "SystemExit"),
        ("raise KeyboardInterrupt", "user_error", "KeyboardInterrupt"),
        ("raise MemoryError", "oom_host", "MemoryError"),
        ("import torch; raise torch.OutOfMemoryError('no room')", "oom_gpu", "torch.OutOfMemoryError"),
        ("import torch; raise torch.AcceleratorError('assert')", "cuda_error", "torch.AcceleratorError"),
        ("import torch; raise RuntimeError('CUDA error: device-side assert triggered')", "cuda_error", "RuntimeError"),
        ("import torch; raise RuntimeError('no CUDA error: it is mine')", "user_error", "RuntimeError"),
        ("import torch; raise RuntimeError('size mismatch')", "user_error", "RuntimeError"),
        ("import nowhere", "user_error", "ModuleNotFoundError"),
        ("def (", "user_error", "SyntaxError"),
        ("class Bad(Exception):\n    def __str__(self): return 1 / 0\nraise Bad", "user_error", "Bad"),
        ("from trackside.errors import StopRequested; raise StopRequested('paused')", "paused", None),
    ],
)
def test_what_left_the_script_is_classified(attempts: Attempts, code: str, outcome: str, kind: str | None) -> None:
    attempt = attempts.script(code)
    returned, _, err = attempt.end()
    assert attempt.outcome == outcome, err
    assert returned == (3 if code == "raise SystemExit(3)" else {"succeeded": 0, "paused": 75}.get(outcome, 1))
    if kind is not None:
        assert attempt.error["type"] == kind


def test_the_page_tells_the_end_as_the_journal_does(attempts: Attempts) -> None:
    for text in ("", "raise MemoryError", "raise ValueError", "import sys; sys.exit(3)"):
        attempt = attempts.script(text)
        attempt.end()
        assert attempt.outcome is not None
        assert attempt.page.end == End(outcome=attempt.outcome)


@pytest.mark.parametrize(
    ("code", "early"),
    [
        ("raise SystemExit", True),
        ("import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)", True),  # it may have left its loop by that
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)", False),
        ("print('done')", False),
        ("import trackside\nfor step in trackside.init().steps(3): pass\nraise SystemExit(0)", False),
        ("import trackside\nfor step in trackside.init().steps(3):\n    if step == 2: break", True),
        ("import trackside\nfor step in trackside.init().steps():\n    if step == 2: break", False),
    ],
)
def test_an_end_that_may_have_come_too_early_says_so(attempts: Attempts, code: str, early: bool) -> None:
    attempt = attempts.script(code)
    assert attempt.end()[0] == 0
    assert attempt.outcome == "succeeded"
    assert attempt.records("end")[0].get("early", False) is early


def test_an_error_is_told_whole_though_a_handler_of_the_script_s_raises_another_meanwhile(attempts: Attempts) -> None:
    """As torch's does when a loader's worker is killed, at whatever moment."""
    attempt = attempts.script(
        "import os, signal\n"
        "def tell(*_): raise RuntimeError('a child died')\n"
        "signal.signal(signal.SIGCHLD, tell)\n"
        "class Lost(Exception):\n"
        "    def __str__(self):\n"
        "        os.kill(os.getpid(), signal.SIGCHLD)\n"
        "        return 'the connection is gone'\n"
        "raise Lost\n"
    )
    assert attempt.end()[0] == 1
    assert (attempt.error["type"], attempt.error["message"]) == ("Lost", "the connection is gone")


@pytest.mark.parametrize(
    "stderr", ["io.BytesIO()", "type('Tee', (), {'write': lambda *_: 1 / 0, 'flush': lambda *_: 1 / 0})()"]
)
def test_an_error_that_the_script_s_own_stderr_does_not_take_is_told_nevertheless(
    attempts: Attempts, stderr: str
) -> None:
    attempt = attempts.script(f"import io, sys\nsys.stderr = {stderr}\nraise ValueError('no data')\n")
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["message"]) == ("user_error", "no data")


@pytest.mark.parametrize("code", ["sys.exit(0.0)", "sys.exit([0])", "sys.exit(Odd())"])
def test_only_none_and_the_whole_number_0_are_a_good_end(attempts: Attempts, code: str) -> None:
    odd = "class Odd:\n    def __eq__(self, other): raise TypeError\n    def __str__(self): raise TypeError\n"
    attempt = attempts.script(f"import sys\n{odd}{code}\n")
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["type"]) == ("user_error", "SystemExit")


def test_an_error_in_a_group_of_its_own_is_that_error(attempts: Attempts) -> None:
    attempt = attempts.script("raise ExceptionGroup('tasks', [ExceptionGroup('more', [MemoryError('full')])])\n")
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["message"]) == ("oom_host", "full")


def test_a_group_is_told_whole_and_no_exit_in_one_is_a_success(attempts: Attempts) -> None:
    attempt = attempts.script("raise ExceptionGroup('all tasks', [ValueError('no data')]) from KeyError('cause')\n")
    assert attempt.end()[0] == 1
    assert (attempt.outcome, attempt.error["type"], attempt.error["message"]) == ("user_error", "ValueError", "no data")
    assert "all tasks" in attempt.error["traceback"]
    assert "cause" in attempt.error["traceback"]
    attempt = attempts.script("raise BaseExceptionGroup('all tasks', [SystemExit(0)])\n")
    assert attempt.end()[0] == 1
    assert attempt.outcome == "user_error"


@pytest.mark.parametrize("then", ["", "raise ValueError('no data')\n"], ids=["well", "failed"])
def test_files_are_written_out_though_a_stop_comes_while_threads_are_joined(attempts: Attempts, then: str) -> None:
    attempt = attempts.script(
        "import os, signal, threading\n"
        "file = open('result.txt', 'w')\n"
        "file.write('result')\n"
        "def last():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()\n"
        "threading._register_atexit(last)\n"  # called before the joining
        f"{then}"
    )
    assert attempt.end()[0] == (1 if then else 75)
    assert (attempt.context.work_dir / "result.txt").read_text() == "result"


def test_a_handler_of_the_script_s_takes_no_end_away_while_a_checkpoint_is_finished(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, signal, time, torch, trackside\n"
        "from trackside.sdk import checkpoints\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGALRM, interrupt)\n"
        "write = checkpoints.CheckpointStore.write\n"
        "def slow(*args, **options):\n"
        "    time.sleep(0.3)\n"
        "    os.kill(os.getpid(), signal.SIGALRM)\n"
        "    time.sleep(0.1)\n"
        "    return write(*args, **options)\n"
        "checkpoints.CheckpointStore.write = slow\n"
        "run = trackside.init()\n"
        "run.checkpointer(model=torch.nn.Linear(2, 2), every=2)\n"
        "steps = run.steps(100)\n"
        "for step in steps:\n"
        "    if step == 3:\n"
        "        break\n"
    )
    assert attempt.end()[0] == 0
    assert (attempt.outcome, [record["s"] for record in attempt.records("ck")]) == ("succeeded", [2])


def test_exit_handlers_run_though_the_threads_could_not_be_joined(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import atexit, threading\n"
        "atexit.register(print, 'handled')\n"
        "threading._register_atexit(lambda: 1 / 0)\n"  # called before the joining, as that of a pool of threads is
    )
    code, out, err = attempt.end()
    assert (code, attempt.outcome, out) == (0, "succeeded", "handled\n")
    assert "ZeroDivisionError" in err


def test_a_checkpoint_is_finished_though_the_loop_was_left_and_is_held_on_to(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import torch, trackside\n"
        "run = trackside.init()\n"
        "run.checkpointer(model=torch.nn.Linear(512, 512), every=2)\n"
        "steps = run.steps(100)\n"
        "for step in steps:\n"
        "    if step == 3:\n"
        "        break\n"
    )
    assert attempt.end()[0] == 0
    assert [record["s"] for record in attempt.records("ck")] == [2]


def test_a_handler_of_the_script_s_that_exits_while_its_error_is_told_makes_no_success_of_it(
    attempts: Attempts,
) -> None:
    attempt = attempts.script(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))\n"
        "class Broken(Exception):\n"
        "    def __str__(self):\n"
        "        os.kill(os.getpid(), signal.SIGALRM)\n"
        "        return 'the data are not there'\n"
        "raise Broken\n"
    )
    assert attempt.end()[0] == 1
    assert attempt.records("end") == []


def test_an_attempt_without_its_folder_ends_with_a_reason(attempts: Attempts) -> None:
    attempt = attempts.make("script", "train.py")
    attempt.context = replace(attempt.context, work_dir=attempts.root / "gone")
    attempt.start()
    assert attempt.end()[0] == 1
    assert attempt.error["type"] == "FileNotFoundError"
