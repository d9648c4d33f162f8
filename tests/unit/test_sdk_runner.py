"""An attempt's process runs its program as Python would, in surroundings of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attempts import LIMIT_S, Attempts
from trackside.errors import ConfigurationError
from trackside.sdk.context import AttemptContext, ProgramKind, ResumePoint
from trackside.sdk.page import ControlPage


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
