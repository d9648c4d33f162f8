"""An attempt's process tells exactly how it ended, or, when it died, nothing at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from attempts import context, records
from trackside.errors import ConfigurationError
from trackside.sdk.context import AttemptContext, Program, ProgramKind, ResumePoint
from trackside.sdk.journal import JournalReader
from trackside.sdk.page import Command, ControlPage, End, Phase
from trackside.testing import wait_until

LIMIT_S = 30.0


@dataclass(kw_only=True)
class Attempt:
    """One attempt in a folder of its own."""

    context: AttemptContext
    process: subprocess.Popen[str] | None = None

    @property
    def page(self) -> ControlPage:
        return ControlPage.open(self.context.page)

    def start(self) -> Attempt:
        ControlPage.create(self.context.page)
        path = self.context.attempt_dir / "attempt.json"
        self.context.to_file(path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trackside.sdk.runner"],
            env={**os.environ, "TRACKSIDE_ATTEMPT": str(path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def end(self) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err

    def records(self, kind: str) -> list[dict[str, Any]]:
        return records(self.context.journal, kind)

    @property
    def outcome(self) -> str | None:
        ends = self.records("end")
        assert len(ends) <= 1
        return ends[0]["outcome"] if ends else None

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = self.records("end")[0]["error"]
        return found


class Attempts:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Attempt] = []
        (root / "work").mkdir()

    def write(self, name: str, code: str) -> None:
        path = self.root / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)

    def make(self, kind: ProgramKind, target: str, *argv: str, params: Mapping[str, Any] | None = None) -> Attempt:
        folder = self.root / str(len(self.made) + 1)
        folder.mkdir()
        program = Program(kind=kind, target=target, argv=argv)
        attempt = Attempt(
            context=context(folder, len(self.made) + 1, root=self.root, params=params or {}, program=program)
        )
        self.made.append(attempt)
        return attempt

    def script(self, code: str, *argv: str) -> Attempt:
        self.write("train.py", code)
        return self.make("script", "train.py", *argv).start()


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    made = Attempts(tmp_path)
    yield made
    for attempt in made.made:
        if attempt.process is not None and attempt.process.poll() is None:
            attempt.process.kill()
            attempt.process.communicate()


def test_the_end_line_comes_after_threads_and_exit_handlers(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import atexit, threading, time, trackside\n"
        "atexit.register(lambda: (time.sleep(0.1), trackside.log(at_exit=1)))\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), trackside.log(thread=1))).start()\n"
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


def test_a_script_runs_as_python_would_run_it(attempts: Attempts) -> None:
    attempts.write("helper.py", "VALUE = 7")
    attempt = attempts.script(
        "import os, pickle, sys, multiprocessing, helper\n"
        "class Thing: pass\n"
        "def work(n): return n + helper.VALUE\n"
        "if __name__ == '__main__':\n"
        "    assert type(pickle.loads(pickle.dumps(Thing()))) is Thing\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(work, [1]))\n"
        "    print(sys.argv, os.getcwd(), sys.path[0], os.path.basename(__file__))\n",
        "--lr",
        "0.1",
    )
    code, out, err = attempt.end()
    work = str(attempts.root / "work")
    assert (code, err) == (0, "")
    assert out == f"[8]\n{['train.py', '--lr', '0.1']} {work} {work} train.py\n"


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
    assert returned == {"succeeded": 0, "paused": 75}.get(outcome, 1)
    if kind is not None:
        assert attempt.error["type"] == kind


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("script", "gone.py"),
        ("script", "."),
        ("module", "gone"),
        ("module", "pkg.gone"),
        ("module", "pkg"),
        ("function", "gone:main"),
        ("function", "pkg.mod:gone"),
        ("function", "pkg.mod:VALUE"),
        ("function", "pkg.mod:needs_lr"),
        ("function", "pkg.mod"),
    ],
)
def test_a_program_that_is_not_there_is_an_invalid_job(attempts: Attempts, kind: ProgramKind, target: str) -> None:
    attempts.write("pkg/__init__.py", "")
    attempts.write("pkg/mod.py", "VALUE = 3\ndef needs_lr(lr): pass\n")
    attempt = attempts.make(kind, target).start()
    assert attempt.end()[0] == 1
    assert attempt.outcome == "invalid_job"


def test_a_module_that_is_missing_inside_of_the_program_is_the_users_error(attempts: Attempts) -> None:
    attempts.write("pkg/__init__.py", "import nowhere")
    attempts.write("pkg/mod.py", "")
    attempt = attempts.make("module", "pkg.mod").start()
    attempt.end()
    assert attempt.outcome == "user_error"


def test_modules_packages_and_functions_run_too(attempts: Attempts) -> None:
    attempts.write("pkg/__init__.py", "")
    attempts.write("pkg/mod.py", "import sys\nfrom . import other\nprint(__name__, __package__, sys.argv[1:], other.X)")
    attempts.write(
        "pkg/other.py", "X = 1\ndef main(lr, depth=2): print(lr, depth)\nclass A:\n    run = staticmethod(main)"
    )
    attempts.write("pkg/__main__.py", "print('whole package')")
    made = [
        attempts.make("module", "pkg.mod", "--a").start(),
        attempts.make("module", "pkg").start(),
        attempts.make("function", "pkg.other:A.run", params={"lr": 0.5}).start(),
    ]
    assert [attempt.end()[:2] for attempt in made] == [
        (0, "__main__ pkg ['--a'] 1\n"),
        (0, "whole package\n"),
        (0, "0.5 2\n"),
    ]


def test_sigterm_stops_at_the_next_boundary_for_the_reason_on_the_page(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import time, trackside\n"
        "for step in trackside.init().steps(10**6):\n"
        "    time.sleep(0.01)\n"
        "    trackside.log(step_end=1)\n"
    )
    wait_until(lambda: attempt.page.completed >= 3, LIMIT_S, "the attempt never made three steps")
    attempt.page.command = Command.CANCEL
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.end()[0] == 75
    assert attempt.outcome == "cancelled"
    assert attempt.records("end")[0]["s"] == len(attempt.records("m"))


STANDS_STILL = (
    "import pathlib, time, trackside\n"
    "for step in trackside.init().steps(60):\n"
    "    while step == 4 and not pathlib.Path('go').exists():\n"
    "        time.sleep(0.01)\n"
    "print('all')\n"
)


def test_a_sigterm_that_comes_after_its_wish_was_taken_back_stops_nothing(attempts: Attempts) -> None:
    attempt = attempts.script(STANDS_STILL)
    wait_until(lambda: attempt.page.completed >= 3, LIMIT_S, "the attempt never made three steps")
    attempt.page.command = Command.PAUSE
    attempt.page.signals()
    attempt.page.command = Command.NONE
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGTERM)
    (attempts.root / "work" / "go").touch()
    assert attempt.end() == (0, "all\n", "")


@pytest.mark.parametrize("commands", [(Command.PAUSE, Command.NONE), (Command.PAUSE,)])
def test_a_stranger_s_sigterm_stops_it_whatever_the_page_has_told_of_pauses(
    attempts: Attempts, commands: tuple[Command, ...]
) -> None:
    attempt = attempts.script(STANDS_STILL)
    wait_until(lambda: attempt.page.completed >= 3, LIMIT_S, "the attempt never made three steps")
    for command in commands:
        attempt.page.command = command
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGTERM)
    (attempts.root / "work" / "go").touch()
    assert attempt.end()[0] == 75
    assert (attempt.outcome, attempt.records("end")[0]["s"]) == ("preempted", 4)


def test_the_page_tells_the_end_as_the_journal_does(attempts: Attempts) -> None:
    for text in ("", "raise MemoryError", "raise ValueError", "import sys; sys.exit(3)"):
        attempt = attempts.script(text)
        attempt.end()
        assert attempt.outcome is not None
        assert attempt.page.end == End(outcome=attempt.outcome)


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
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGINT)
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.end()[:2] == (75, "")
    assert attempt.outcome == "preempted"


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
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGUSR2)
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
    assert attempt.process is not None
    attempt.process.send_signal(signal.SIGTERM)
    assert attempt.end()[0] == 75
    assert attempt.outcome == "preempted"


def test_an_attempt_without_its_folder_ends_with_a_reason(attempts: Attempts) -> None:
    attempt = attempts.make("script", "train.py")
    attempt.context = replace(attempt.context, work_dir=attempts.root / "gone")
    attempt.start()
    assert attempt.end()[0] == 1
    assert attempt.error["type"] == "FileNotFoundError"


def test_a_slot_sees_its_own_gpu_and_threads_only(attempts: Attempts) -> None:
    attempt = attempts.script(
        "import os, torch\n"
        "print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'], repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    )
    assert attempt.end()[1] == "1 1 ''\n"


FORKING = """
import atexit, os, sys, torch
from trackside.sdk.context import AttemptContext
from trackside.sdk.runner import run_attempt
atexit.register(lambda: print("the parent's handler", os.getpid() == parent))
parent = os.getpid()
torch.set_num_threads(1)
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os._exit(run_attempt(AttemptContext.from_file(path)))
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_one_warm_parent_forks_attempts_that_share_nothing(attempts: Attempts) -> None:
    attempts.write(
        "train.py",
        "import sys, torch, trackside\n"
        "assert 'parent' not in globals() and torch.get_num_threads() == 2\n"
        "trackside.log(loss=torch.rand(200, 200).mm(torch.rand(200, 200)).mean())\n"
        "if sys.argv[1:] == ['fail']: raise ValueError('on purpose')\n",
    )
    made = [attempts.make("script", "train.py"), attempts.make("script", "train.py", "fail")]
    paths = []
    for attempt in made:
        attempt.context = replace(attempt.context, threads=2)  # more than the parent has: they are raised in the child
        ControlPage.create(attempt.context.page)
        paths.append(str(attempt.context.attempt_dir / "attempt.json"))
        attempt.context.to_file(paths[-1])
    done = subprocess.run([sys.executable, "-c", FORKING, *paths], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout == "child 0\nchild 1\nthe parent's handler True\n", done.stderr
    assert [attempt.outcome for attempt in made] == ["succeeded", "user_error"]
    assert made[0].records("m")[0]["m"] == made[1].records("m")[0]["m"]


def test_a_context_survives_its_file_and_fields_of_later_versions(tmp_path: Path, attempts: Attempts) -> None:
    context = attempts.make("script", "train.py", "--a", params={"lr": 0.1}).context
    listed = (ResumePoint(name="step-00000001-a1", step=1, digest="d"), ResumePoint(name="step-00000002-a1", step=2))
    for resume in (None, (), listed):
        written = replace(context, resume=resume, gpu_uuid="GPU-1")
        written.to_file(tmp_path / "attempt.json")
        text = (tmp_path / "attempt.json").read_text()
        (tmp_path / "attempt.json").write_text('{"later":{"field":1},' + text[1:])
        assert AttemptContext.from_file(tmp_path / "attempt.json") == written
    (tmp_path / "attempt.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="TRACKSIDE_ATTEMPT"):
        AttemptContext.from_file(tmp_path / "attempt.json")


def test_without_an_attempt_file_the_runner_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "trackside.sdk.runner"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "TRACKSIDE_ATTEMPT is not set" in done.stderr
