"""When an attempt's process heeds a SIGTERM: where the program runs, and then at its next boundary.

Earlier or later it would cut short what tells how the attempt ended.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from trackside.sdk.context import HELD_BACK
from trackside.sdk.page import Command, ControlPage
from trackside.sdk.run import Run


class Hearing:
    """The handler of SIGTERM. One that comes while it is `held` back waits.

    `held` is simply set: the interpreter runs handlers at the beginning of a call, so a method would come too late.
    """

    def __init__(self, run: Run, page: ControlPage) -> None:
        self.held = True
        self.missed = False  # whether the script took one that was for us, as may be seen once nothing is heeded
        self.taken_over = False  # whether a handler of the script's own stood at the end
        self._run, self._page = run, page
        self._waits = False
        self._heard = 0  # the newest of the worker's signals that came here
        self._ours = self._stop  # the handler: a method is another object each time

    def begin(self) -> None:
        """Take the signals; SIGTERM is held back until `let_in`, SIGINT is the worker's."""
        signal.signal(signal.SIGTERM, self._ours)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _leave_children_their_sigterm()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def let_in(self) -> None:
        """Heed it from here on, and the one that waits."""
        self.held = False
        if self._waits:
            self._waits = False
            signal.raise_signal(signal.SIGTERM)

    def take_back(self) -> None:
        """Put the handler where the script may have put one of its own."""
        if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            self._heard = self._page.signalled  # none of them came to the script
        _install(signal.SIGTERM, self._ours)

    def end(self) -> None:
        """Heed no SIGTERM from here on: the outcome is known. Raises what one does that came just before."""
        pending = signal.SIGTERM in signal.sigpending()  # the script holds it back, so it has not left for it
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.missed = handler is not signal.SIG_IGN and not pending and self._heard != self._page.signalled
        self.taken_over = callable(handler) and handler is not self._ours

    def deafen(self) -> None:
        """Let no signal that this process handles cut short what is still to be told."""
        self.held = True
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                _install(number, signal.SIG_IGN)

    def _stop(self, _number: int, _frame: Any) -> None:
        if self.held:
            self._waits = True
            return
        command, told = self._page.command, self._page.signalled
        ours, self._heard = told != self._heard, told
        if not ours and command in (Command.NONE, Command.PAUSE):  # a pause may be refused; a stranger does not wait
            command = Command.PREEMPT
        if command is not Command.NONE:  # else it came late, and what it was for has been taken back
            self._run.request_stop(command.reason)


def _install(number: int, handler: Any) -> None:
    """Put a handler in the place of whatever there is, which may raise meanwhile."""
    while True:
        try:
            signal.signal(number, handler)
            break
        except BaseException:  # noqa: BLE001, S112 - raised by a handler of the script's own
            continue


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
