"""Runs one attempt: from its context to its end line.

    1. the process is made ready: threads, GPU, directory, output, signals, crash dumps;
    2. the user's program runs as `__main__`, or its function is called;
    3. non-daemon threads are joined and atexit handlers run, as at any interpreter's end;
    4. the end line is written, last of all: without one, the worker knows that the process died on the way.

`python -m trackside.sdk.runner` does this in a fresh interpreter (TRACKSIDE_ATTEMPT names the attempt file);
`run_attempt` does it in a child that the worker forked. Signals of ours: SIGTERM asks to stop, SIGINT is ignored since
the worker owns the stop (a Ctrl-C in a terminal reaches both), SIGUSR2 dumps all stacks; SIGUSR1 is left to libraries.
A SIGTERM is only let in where the program runs: earlier or later it would cut short what tells how the attempt ended.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any, Final

from trackside.errors import ConfigurationError, StopRequested
from trackside.sdk import outcome, program
from trackside.sdk.context import ENVIRONMENT, HELD_BACK, STACKS_FILE, AttemptContext
from trackside.sdk.journal import now_ms
from trackside.sdk.outcome import Outcome
from trackside.sdk.output import keep_printing
from trackside.sdk.page import Command, ControlPage, End, Phase
from trackside.sdk.run import Run, set_current

_KEPT: Final[list[IO[str]]] = []
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Hearing:
    """Whether a SIGTERM is heeded now; one that comes while it is `held` back waits.

    `held` is simply set: the interpreter runs handlers at the beginning of a call, so a method would come too late.
    """

    def __init__(self) -> None:
        self.held = True
        self.waits = False
        self.ours: Any = signal.SIG_DFL  # the handler

    def let_in(self) -> None:
        """Heed it from here on, and the one that waits."""
        self.held = False
        if self.waits:
            self.waits = False
            signal.raise_signal(signal.SIGTERM)


def run_attempt(context: AttemptContext, *, forked: bool = True) -> int:
    """Run the attempt in this process and return the exit code; the caller then leaves by `os._exit`."""
    try:
        if forked:
            _forget_the_parent()
        hearing = _Hearing()
        page = ControlPage.open(context.page)
        run = Run.of_attempt(context)
        set_current(run)
        _take_signals(run, page, hearing)
        ended = _to_the_end(context, hearing)
        _write_end(run, page, ended)
    except BaseException:  # noqa: BLE001 - a forked child must never come back into its parent's code
        traceback.print_exc()
        return outcome.EXIT_ERROR
    _flush_output()
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


def _forget_the_parent() -> None:
    """Drop what a fork inherits and a fresh interpreter would not have."""
    atexit._clear()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, HELD_BACK)
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    atexit.register(logging.shutdown)
    if "multiprocessing.util" in sys.modules:
        import multiprocessing.process as mp_process
        import multiprocessing.util as mp_util

        # The parent's children and finalizers are the parent's: ending them here would kill its processes.
        mp_process._children.clear()  # type: ignore[attr-defined]
        mp_util._finalizer_registry.clear()  # type: ignore[attr-defined]
        atexit.register(mp_util._exit_function)  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()  # else every attempt forked from one parent draws the same numbers


def _to_the_end(context: AttemptContext, hearing: _Hearing) -> Outcome:
    """Run the program and all that it left behind; a stop request in between cuts that short."""
    ended: Outcome | None = None
    try:
        ended = _call(context, hearing)
        hearing.let_in()
        _finish()
        # A request from here on changes nothing: the outcome is known.
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except StopRequested as stop:
        hearing.held = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return outcome.of_exception(stop) if ended is None or ended.name == outcome.SUCCEEDED.name else ended
    except BaseException:  # a handler of the script's own
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ended is None:  # what the script raised was just being told
            raise
        return outcome.EARLY if ended is outcome.SUCCEEDED else ended
    if ended is outcome.SUCCEEDED and callable(handler) and handler is not hearing.ours:
        return outcome.EARLY
    return ended


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


def _take_signals(run: Run, page: ControlPage, hearing: _Hearing) -> None:
    heard = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal heard
        del number, frame
        if hearing.held:
            hearing.waits = True
            return
        command, told = page.command, page.signalled
        ours, heard = told != heard, told
        if not ours and command in (Command.NONE, Command.PAUSE):  # a pause may be refused; a stranger does not wait
            command = Command.PREEMPT
        if command is not Command.NONE:  # else it came late, and what it was for has been taken back
            run.request_stop(command.reason)

    hearing.ours = stop
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_children_their_sigterm()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def _leave_children_their_sigterm() -> None:
    """Let a child that the script forks, such as a loader's worker, die of SIGTERM as it would without us.

    The signal is held back over the fork: a Python handler that the child inherits loses what arrives before the
    interpreter has cleaned up after the fork, and whoever terminates a child that was just started would wait for ever.
    """
    kept = threading.local()

    def before() -> None:
        kept.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, kept.mask)

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _call(context: AttemptContext, hearing: _Hearing) -> Outcome:
    try:
        hearing.let_in()
        _prepare(context)
        program.execute(context.program, context.work_dir, context.params)
    except BaseException as raised:  # noqa: BLE001 - this is the one place where everything ends, stop requests too
        hearing.held = True
        while True:
            try:
                signal.signal(signal.SIGTERM, hearing.ours)
                break
            except BaseException:  # noqa: BLE001, S112 - raised by a handler of the script's own, which is taken down
                continue
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


def _finish() -> None:
    """Join the script's threads and run its atexit handlers, as the interpreter does at its own end."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # private, and the only way to join as Python does
        atexit._run_exitfuncs()
    except StopRequested:
        raise
    except BaseException:  # noqa: BLE001 - the interpreter, too, only prints what an exit handler raises
        traceback.print_exc()


def _write_end(run: Run, page: ControlPage, ended: Outcome) -> None:
    record = {"k": "end", "t": now_ms(), "outcome": ended.name, "s": page.completed, "error": ended.error}
    if ended.bad_step is not None:
        record["bad_step"] = ended.bad_step
    early = ended.name == outcome.SUCCEEDED.name and _perhaps_early(page, ended)
    if early:
        record["early"] = True
    try:
        run.flush()
    except Exception as error:  # noqa: BLE001 - after a GPU error the numbers still waiting there are gone
        print(f"the last metrics were lost: {error}", file=sys.stderr)
    run.record(record)
    # Here too, since a full disk does not take the line.
    page.end = End(outcome=ended.name, bad_step=ended.bad_step, early=early)
    page.phase = Phase.ENDED


def _perhaps_early(page: ControlPage, ended: Outcome) -> bool:
    """Whether there may have been more to do: by its steps, and where they cannot tell, by the way it left.

    The worker, which knows whether a stop was asked for, judges by it.
    """
    if page.first is not None and page.total is not None:
        return page.completed < page.total
    return ended.early


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - closed by the script, or one of its own
            continue


if __name__ == "__main__":
    # Run as the module that others import: `__main__` is about to be the user's program.
    from trackside.sdk import runner  # noqa: PLW0406 - the copy that is `__main__` goes away

    os._exit(runner.main())
