"""What the interpreter does at its start and at its end, for an attempt that has neither: it is forked, and it leaves
by `os._exit`, since its last line has to come after everything else."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import signal
import stat
import sys
import threading
import traceback
import weakref
from contextlib import suppress
from typing import Any, Final

from trackside.errors import StopRequested
from trackside.sdk.context import HELD_BACK

_BUFFERED: Final = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def forget_the_parent() -> None:
    """Drop what a fork inherits and a fresh interpreter would not have."""
    gc.freeze()  # the parent's objects: nothing of theirs is looked for at the end, nor copied by looking at them
    atexit._clear()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, HELD_BACK)
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    atexit.register(logging.shutdown)
    finalize: Any = weakref.finalize
    for info in finalize._registry.values():
        info.atexit = False  # the parent's
    finalize._registered_with_atexit = False  # so that the first of the script's registers them again
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


def finish() -> None:
    """Join the script's threads and run its exit handlers; a StopRequested cuts that short."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # private, and the only way to join as Python does
    except StopRequested:
        raise
    except BaseException:  # noqa: BLE001 - the interpreter, too, only prints it
        _print_error()
    try:
        atexit._run_exitfuncs()
    except StopRequested:
        raise
    except BaseException:  # noqa: BLE001 - as above
        _print_error()


def flush_output() -> None:
    """Write out stdout and stderr, as far as they take it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed by the script, or one of its own
            stream.flush()


def _print_error() -> None:
    with suppress(Exception):  # the script's own stderr may take nothing
        traceback.print_exc()


def flush_files(limit_s: float | None = None) -> None:
    """Write out what stands in the buffers of files that the script left open; wait for it so long, None: to its end.

    Of files only, since a pipe that nobody reads takes it never.
    """
    thread = threading.Thread(target=_flush_files, name="trackside-flush", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads for this user
        _flush_files()
    else:
        thread.join(limit_s)


def _flush_files() -> None:
    with suppress(Exception):
        for found in gc.get_objects():
            if issubclass(type(found), _BUFFERED):  # `isinstance` asks the object, and some answer at length
                with suppress(Exception):
                    if not found.closed and stat.S_ISREG(os.fstat(found.fileno()).st_mode):
                        found.flush()
