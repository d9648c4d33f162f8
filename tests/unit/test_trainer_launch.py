"""The first moments of an attempt's process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attempts import LIMIT_S, context, records
from trackside.sdk.page import ControlPage

# As a worker does it, but that somebody else's SIGTERM comes to the new process as early as one can: before its first
# own code where it is forked, and before that of another interpreter where it is to be that.
STRANGER = """
import os, signal, sys
from pathlib import Path
from trackside.sdk.context import AttemptContext
from trackside_trainer import launch

signal.signal(signal.SIGTERM, lambda *_: None)  # as a worker has one
folder, python = Path(sys.argv[1]), sys.argv[2] or None
take_streams = launch._take_streams

def then_stopped(output):
    take_streams(output)
    os.kill(os.getpid(), signal.SIGTERM)

launch._take_streams = then_stopped
path = folder / "attempt.json"
started = launch.start(
    AttemptContext.from_file(path), path, output=folder / "output.log", python=python, home=folder
)
print(os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]))
"""


# As a worker does it, and nothing else happens; what the worker has registered is the worker's.
STARTS = """
import os, sys, weakref
from pathlib import Path
from trackside.sdk.context import AttemptContext
from trackside_trainer import launch

class Kept: pass
kept = Kept()
weakref.finalize(kept, print, "the worker's")
folder, python = Path(sys.argv[1]), sys.argv[2] or None
path = folder / "attempt.json"
started = launch.start(
    AttemptContext.from_file(path), path, output=folder / "output.log", python=python, home=folder
)
print(os.waitstatus_to_exitcode(os.waitpid(started.pid, 0)[1]), flush=True)
os._exit(0)
"""
LEAVES_THINGS_OPEN = """
import subprocess, sys, tempfile, weakref
from pathlib import Path

class Kept: pass
kept = Kept()
weakref.finalize(kept, print, "finalized")
folder = tempfile.TemporaryDirectory(dir=".", prefix="scratch-")
open_file = open("result.txt", "w")
open_file.write("result")
gone = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
gone.wait()
try:
    gone.stdin.write(b"x" * 100_000)
except BrokenPipeError:
    print("nobody reads")
"""


@pytest.mark.parametrize("python", ["", sys.executable], ids=["forked", "cold"])
def test_a_program_runs_and_ends_as_the_interpreter_would_have_it(tmp_path: Path, python: str) -> None:
    made = context(tmp_path)
    made.work_dir.mkdir()
    (made.work_dir / "train.py").write_text(LEAVES_THINGS_OPEN)
    ControlPage.create(made.page)
    made.to_file(tmp_path / "attempt.json")
    command = [sys.executable, "-c", STARTS, str(tmp_path), python]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    told = (tmp_path / "output.log").read_text()
    assert (answer.stdout, told) == ("0\n", "nobody reads\nfinalized\n"), answer.stderr
    assert [end["outcome"] for end in records(made.journal, "end")] == ["succeeded"]
    assert (made.work_dir / "result.txt").read_text() == "result"
    assert list(made.work_dir.glob("scratch-*")) == []


@pytest.mark.parametrize("python", ["", sys.executable], ids=["forked", "cold"])
def test_a_sigterm_that_comes_while_an_attempt_starts_is_the_stop_that_it_is(tmp_path: Path, python: str) -> None:
    made = context(tmp_path)
    made.work_dir.mkdir()
    (made.work_dir / "train.py").write_text("print('begun')\n")
    ControlPage.create(made.page)
    made.to_file(tmp_path / "attempt.json")
    command = [sys.executable, "-c", STRANGER, str(tmp_path), python]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (answer.stdout, (tmp_path / "output.log").read_text()) == ("75\n", ""), answer.stderr
    assert [end["outcome"] for end in records(made.journal, "end")] == ["preempted"]
