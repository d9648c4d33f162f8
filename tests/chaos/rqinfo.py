"""`rq info --interval 1` beside everything else that is done to a system, as somebody who watches would run it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trackside.errors import TracksideError

_AGAIN_S = 1.0
_END = b"Updated:"  # the last line of each listing
_KEPT = 40  # lines


@dataclass(kw_only=True, slots=True)
class Watch:
    """How often it has listed everything, and how often it was started: it ends with its server."""

    listings: int = 0
    starts: int = 0
    tracebacks: int = 0
    told: list[bytes] = field(default_factory=list)  # the newest lines, so that a traceback can be shown


everywhere = Watch()  # all that ran in this process, for the report


@contextmanager
def watched(url: Callable[[], str], *, judge: bool = True) -> Iterator[Watch]:
    """Run it until the block ends, anew whenever it ends by itself; `url` is the operator's, who may write no ts:*.

    Raises AssertionError at the block's end when it had a traceback or never listed anything, unless the caller judges.
    """
    over = threading.Event()
    watch = Watch()
    running: list[subprocess.Popen[bytes]] = []

    def run() -> None:
        while not over.wait(_AGAIN_S if watch.starts else 0.0):
            try:
                where = url()
            except TracksideError:  # no server has been started yet
                continue
            command = [str(Path(sys.executable).with_name("rq")), "info", "--interval", "1", "--url", where]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            running[:] = [process]
            watch.starts += 1
            if over.is_set():
                process.terminate()
            with process:
                for line in process.stdout or ():
                    watch.listings += line.startswith(_END)
                    watch.tracebacks += line.startswith(b"Traceback")
                    watch.told = [*watch.told[-_KEPT:], line]

    thread = threading.Thread(target=run, name="rq info")
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        for process in running:
            process.terminate()
        thread.join()
        everywhere.listings += watch.listings
        everywhere.starts += watch.starts
        everywhere.tracebacks += watch.tracebacks
    if judge:
        assert watch.tracebacks == 0, b"rq info had a traceback:\n" + b"".join(watch.told)
        assert watch.listings > 0, b"rq info listed nothing:\n" + b"".join(watch.told)
