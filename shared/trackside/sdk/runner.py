"""Runs one attempt: from its context to its end line.

    1. the process is made ready: threads, GPU, directory, output, signals, crash dumps;
    2. the user's program runs as `__main__`, or its function is called;
    3. non-daemon threads are joined and atexit handlers run, as at any interpreter's end;
    4. the end line is written, last of all: without one, the worker knows that the process died on the way.

`python -m trackside.sdk.runner` does this in a fresh interpreter (TRACKSIDE_ATTEMPT names the attempt file);
`run_attempt` does it in a child that the worker forked. Signals of ours: SIGTERM asks to stop, SIGINT is ignored since
the worker owns the stop (a Ctrl-C in a terminal reaches both), SIGUSR2 dumps all stacks; SIGUSR1 is left to libraries.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from trackside.errors import ConfigurationError, StopRequested
from trackside.sdk import interpreter, outcome, program
from trackside.sdk.context import ENVIRONMENT, STACKS_FILE, AttemptContext
from trackside.sdk.hearing import Hearing
from trackside.sdk.journal import now_ms
from trackside.sdk.outcome import Outcome
from trackside.sdk.output import keep_printing
from trackside.sdk.page import ControlPage, End, Phase
from trackside.sdk.run import LEAVES_AT_ONCE, Run, set_current

_KEPT: Final[list[IO[str]]] = []
_CHILD_S: Final = 1.0  # to write out files: the lock of one may belong to a thread that a fork has not brought along
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_attempt(context: AttemptContext, *, forked: bool = True) -> int:
    """Run the attempt in this process and return the exit code; the caller then leaves by `os._exit`."""
    own = os.getpid()
    try:
        if forked:
            interpreter.forget_the_parent()
        page = ControlPage.open(context.page)
        run = Run.of_attempt(context)
        set_current(run)
        hearing = Hearing(run, page)
        hearing.begin()
        ended = _to_the_end(context, run, hearing)
        if os.getpid() == own:
            page.phase = Phase.SAVING  # what is asked from here on is not heard, and no signal is to say that it was
        hearing.deafen()
        if os.getpid() == own:
            interpreter.flush_files()
            _write_end(run, page, ended)
        else:  # a child that the script forked has come here, and its end is nobody's but its own
            interpreter.flush_files(_CHILD_S)
    except BaseException:  # noqa: BLE001 - a forked child must never come back into its parent's code
        with suppress(Exception):
            traceback.print_exc()
        return outcome.EXIT_ERROR
    interpreter.flush_output()
    return ended.exit_code


def main() -> int:
    """Run the attempt that the environment names, in a fresh interpreter."""
    path = os.environ.get(ENVIRONMENT)
    if not path:
        print(f"{ENVIRONMENT} is not set: the worker sets it to the attempt file", file=sys.stderr)
        return outcome.EXIT_ERROR
    try:
        context = AttemptContext.from_file(path)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return outcome.EXIT_ERROR
    if sys.path and sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]  # the program's folder takes this place
    ours = str(Path(outcome.__file__).parents[2])
    if ours not in sys.path:
        sys.path.append(ours)  # parts of this package are imported later, on first use
    return run_attempt(context, forked=False)


def _to_the_end(context: AttemptContext, run: Run, hearing: Hearing) -> Outcome:
    """Run the program and all that it left behind; a stop request in between cuts that short."""
    ended: Outcome | None = None
    try:
        ended = _call(context, hearing)
        if run.left_by is not None:
            ended = outcome.despite(run.left_by, ended)
        hearing.let_in()
        interpreter.finish()
        hearing.end()  # a request from here on changes nothing: the outcome is known
    except StopRequested as stop:
        hearing.held = True
        return outcome.of_exception(stop) if ended is None or ended.name == outcome.SUCCEEDED.name else ended
    except BaseException:  # a handler of the script's own
        hearing.held = True
        if ended is None:  # what the script raised was just being told
            raise
        return outcome.EARLY if ended is outcome.SUCCEEDED else ended
    if ended.name == outcome.SUCCEEDED.name:
        if run.left_by is not None:  # it came to an exit handler, and what that raises is only printed
            return outcome.of_exception(run.left_by)
        return replace(ended, early=ended.early or hearing.missed or hearing.taken_over)
    return replace(ended, early=hearing.missed and ended.name == "user_error")


def _prepare(context: AttemptContext) -> None:
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(context.threads)
    os.environ["CUDA_VISIBLE_DEVICES"] = context.gpu_uuid or ""  # a CPU slot owns no GPU, so it sees none
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(context.threads)
    os.chdir(context.work_dir)
    keep_printing()
    stacks = (context.attempt_dir / STACKS_FILE).open("a")  # open until the end: the dump writes to its descriptor
    _KEPT.append(stacks)
    faulthandler.enable(file=sys.__stderr__ or stacks, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True, chain=False)


def _call(context: AttemptContext, hearing: Hearing) -> Outcome:
    try:
        hearing.let_in()
        _prepare(context)
        program.execute(context.program, context.work_dir, context.params)
    except BaseException as raised:  # noqa: BLE001 - this is the one place where everything ends, stop requests too
        hearing.held = True
        hearing.take_back()
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except Exception as told:  # noqa: BLE001 - whatever a handler of the script's raises
            # torch tells of a killed loader from a handler of SIGCHLD, which may run while the loss of the connection
            # to that loader is on its way up here; and half of its deaths are told so late.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _told(outcome.of_exception(told))
        return _told(outcome.of_exception(raised))
    return outcome.SUCCEEDED


def _told(ended: Outcome) -> Outcome:
    """Print the error where a script's own traceback would stand."""
    if ended.error is not None:
        error = ended.error
        text = f"{error['message']}\n" if error["type"] in ("SystemExit", "Diverged") else error["traceback"]
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except Exception:  # noqa: BLE001, S110 - the script closed its stderr, or has one of its own that takes no text
            pass  # the end line carries the same
    return ended


def _write_end(run: Run, page: ControlPage, ended: Outcome) -> None:
    record = {"k": "end", "t": now_ms(), "outcome": ended.name, "s": page.completed, "error": ended.error}
    if ended.bad_step is not None:
        record["bad_step"] = ended.bad_step
    early = _perhaps_early(page, ended)
    if early:
        record["early"] = True
    try:
        run.flush()
    except Exception as error:  # noqa: BLE001 - after a GPU error the numbers still waiting there are gone
        with suppress(Exception):  # the script's own stderr may take nothing
            print(f"the last metrics were lost: {error}", file=sys.stderr)
    if ended.name not in LEAVES_AT_ONCE:
        run.settle()  # a loop that was left while something holds on to it has not done so
    # Here too, and first: neither a full disk nor full memory takes the line.
    page.end = End(outcome=ended.name, bad_step=ended.bad_step, early=early)
    run.record(record)
    page.phase = Phase.ENDED


def _perhaps_early(page: ControlPage, ended: Outcome) -> bool:
    """Whether it may have left because it was asked: by its steps, and where they cannot tell, by the way it left.

    The worker, which knows whether a stop was asked for, judges by it.
    """
    if ended.name == outcome.SUCCEEDED.name and page.first is not None and page.total is not None:
        return page.completed < page.total
    return ended.early


if __name__ == "__main__":
    # Run as the module that others import: `__main__` is about to be the user's program.
    from trackside.sdk import runner  # noqa: PLW0406 - the copy that is `__main__` goes away

    os._exit(runner.main())
