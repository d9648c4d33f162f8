"""Starts an attempt's process: forked from the preloaded worker, or in another interpreter.

The process gets its own session, no descriptor, signal handler or secret of ours, and the kernel's promise that it
dies with its worker.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import trackside
from trackside import processes
from trackside._version import __version__
from trackside.errors import InvalidJob
from trackside.processes import die_with_parent
from trackside.sdk.context import ENVIRONMENT, HELD_BACK, AttemptContext
from trackside.wholefile import replacing
from trackside_trainer.preload import as_if_fresh

# What is ours to know: addresses and passwords of the bus above all.
_OURS: Final = ("TRACKSIDE_", "RQ_", "REDIS_", "VALKEY_")
_SET_BY_US: Final = ("PYTORCH_NVML_BASED_CUDA_CHECK",)
_DEFAULTED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1)
_EXEC_FAILED: Final = 127


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A running attempt process; `pidfd` becomes readable at its end."""

    pid: int
    started: int
    pidfd: int


def environment(base: Mapping[str, str], context: AttemptContext, context_path: Path) -> dict[str, str]:
    """The attempt's environment: the service's without what is ours, and what pins it to its slot."""
    kept = {name: value for name, value in base.items() if not name.startswith(_OURS) and name not in _SET_BY_US}
    threads = str(context.threads)
    return {
        **kept,
        ENVIRONMENT: str(context_path),
        "CUDA_VISIBLE_DEVICES": context.gpu_uuid or "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
    }


def marker(context_path: Path) -> str:
    """What only this attempt's processes have in their environment."""
    return f"{ENVIRONMENT}={context_path}"


def start(context: AttemptContext, context_path: Path, *, output: Path, python: str | None, home: Path) -> Started:
    """Start the process; raises InvalidJob when the other interpreter cannot be run."""
    env = environment(os.environ, context, context_path)
    if python is not None:
        if not os.access(python, os.X_OK) or Path(python).is_dir():
            raise InvalidJob(f"{python} is no interpreter on this host: give the path of a Python to --python")
        # Our interpreter's own settings are not for another one.
        env = {name: value for name, value in env.items() if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"}
        env |= {"PYTHONPATH": str(_shim(home)), "PYTHONUNBUFFERED": "1"}
    parent = os.getpid()
    # A SIGTERM in the child before its own handlers stand would run the worker's, or end it unheard.
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        pid = os.fork()
        if pid == 0:
            _become_attempt(parent, env, context_path, output, python, context.threads)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    return Started(pid=pid, started=processes.start_time(pid) or 0, pidfd=processes.watch_child(pid))


def _become_attempt(
    parent: int, env: Mapping[str, str], context_path: Path, output: Path, python: str | None, threads: int
) -> NoReturn:
    """The child's side of the fork; never returns into the worker's code."""
    code = _EXEC_FAILED
    try:
        os.setsid()
        die_with_parent(signal.SIGKILL, parent)
        for number in _DEFAULTED:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        _take_streams(output)
        processes.drop_descriptors()
        os.environ.clear()
        os.environ.update(env)
        signal.pthread_sigmask(signal.SIG_SETMASK, HELD_BACK)  # the runner lets them in
        if python is not None:
            os.chdir(context_path.parent)
            os.execve(python, [python, "-m", "trackside.sdk.runner"], dict(env))  # noqa: S606 -- no shell is wanted
        from trackside.sdk.runner import run_attempt

        as_if_fresh(threads)
        code = run_attempt(AttemptContext.from_file(context_path))
    except BaseException as error:  # noqa: BLE001 -- whatever happens, this copy of the worker must end here
        os.write(2, f"the attempt could not be started: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _take_streams(output: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    written = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(null, 0)
    os.dup2(written, 1)
    os.dup2(written, 2)
    # Whoever captured or closed these in the parent (a test runner, a service manager) has no say here.
    sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 -- for the life of the process
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]  # a new process's own


def _shim(home: Path) -> Path:
    """A folder that holds our package and nothing else, so that a foreign interpreter keeps its own libraries."""
    folder = home / "sdk" / __version__
    link = folder / "trackside"
    target = Path(trackside.__file__).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() or link.readlink() != target:
        with replacing(link) as aside:
            aside.symlink_to(target)
    return folder
