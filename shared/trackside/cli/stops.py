"""Signals that end a command which runs a whole system or has taken the terminal: the first ends it, in order.

A second one that raised too would skip the rest of a `finally`, and leave a system, a folder or a terminal as it is
then; so any more only hurry what is being stopped. Where nothing is being stopped long after the first, that one was
lost, as what is raised within a destructor is, and the next one takes its place.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from trackside.processes import stop_signals

_LOST_S: Final = 5.0  # more than it takes from the signal to the `finally` that stops a system


class Stops:
    """The handler. While it is `held` the first signal waits: what it ends is only being made, or ends already.

    `held` is simply set: the interpreter runs handlers at the beginning of a call, so a method would come too late.
    """

    def __init__(self) -> None:
        self.held = True
        self.hurry: Callable[[], object] | None = None  # once something is being stopped
        self._first: int | None = None
        self._raised_s = 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.hurry is not None:
            if number != signal.SIGHUP:  # shell and kernel both send one: no hurry is meant by it
                self.hurry()
        elif self._first is None or (not self.held and time.monotonic() - self._raised_s > _LOST_S):
            self._first = number
            if not self.held:
                raise self._end()

    def let_in(self) -> None:
        """Raise KeyboardInterrupt or SystemExit at the first signal from here on, or for the one that waits."""
        self.held = False
        if self._first is not None:
            raise self._end()

    @property
    def exit_code(self) -> int:
        """What a command ends with that a signal has ended."""
        return 128 + (self._first or 0)

    def _end(self) -> BaseException:
        self._raised_s = time.monotonic()
        return KeyboardInterrupt() if self._first == signal.SIGINT else SystemExit(self.exit_code)


@contextmanager
def taken() -> Iterator[Stops]:
    """Handle the signals that ask for the end until the block ends, held at first."""
    stops = Stops()
    before = [(number, signal.signal(number, stops)) for number in stop_signals()]
    try:
        yield stops
    finally:
        for number, handler in before:
            signal.signal(number, handler)
