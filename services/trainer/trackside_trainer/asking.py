"""What a training process is asked to do, and until when it has to.

A stop has its grace, then comes SIGKILL; a stop that saves first is not cut off in the middle of that. A pause has no
end: it waits as long as a step or a checkpoint takes, and a process that really hangs is the watchdog's. It is also the
only wish that can be taken back. What is asked after the process has exited is not why it did.
"""

from __future__ import annotations

import select
import signal
import time
from contextlib import suppress
from typing import Any, Final

from trackside.config import Settings
from trackside.models import Reason
from trackside.sdk.page import Command, ControlPage, Phase

# Graces shorter than the one that people set: a newer attempt may be running already; a hung process rarely wakes.
_SHORT_GRACE_S: Final = {Reason.FENCED: 1.5, Reason.STALLED: 1.0}
# A stronger wish replaces a weaker one. A pause is the weakest: who must go gets a deadline, and the job pauses anyway.
_RANK: Final = {
    Reason.PAUSED: 1,
    Reason.PREEMPTED: 2,
    Reason.TIMEOUT: 3,
    Reason.STALLED: 4,
    Reason.CANCELLED: 5,
    Reason.FENCED: 6,
}
_COMMANDS: Final = {
    Reason.PREEMPTED: Command.PREEMPT,
    Reason.TIMEOUT: Command.PREEMPT,  # it saves first: whoever raises the limit can go on
    Reason.PAUSED: Command.PAUSE,
    Reason.STALLED: Command.PREEMPT,  # one that only stood still, such as a stopped one, may save yet
    Reason.CANCELLED: Command.CANCEL,
    Reason.FENCED: Command.FENCED,
}
_LEAVE_S: Final = 0.5  # for a process on its way out after it has saved
_MAY_FINISH_SAVING: Final = frozenset({Reason.PREEMPTED, Reason.TIMEOUT, Reason.STALLED})


class Asking:
    """The strongest wish so far; `reason` is None while nothing is asked."""

    def __init__(self, settings: Settings, log: Any) -> None:
        self.reason: Reason | None = None
        self.why: str | None = None  # the words behind it
        self._settings, self._log = settings, log
        self._page: ControlPage | None = None
        self._pidfd: int | None = None
        self._kill_at_s: float | None = None
        self._saving_until_s = 0.0
        self._ended = False
        self._heard_last: Reason | None = None  # once it has ended

    @property
    def heard(self) -> Reason | None:
        """What may have made the process leave: not a pause that it was never told of, or has refused."""
        if self._ended:
            return self._heard_last
        if self.reason is Reason.PAUSED and self._page is not None and self._page.heard is Command.NONE:
            return None
        return self.reason

    def started(self, page: ControlPage, pidfd: int) -> None:
        """There is a process to ask."""
        self._page, self._pidfd = page, pidfd

    def ended(self) -> None:
        """There is none any more; what it did not hear it has not heeded. A second call changes nothing."""
        self._heard_last, self._ended = self.heard, True
        self._pidfd = self._kill_at_s = None

    def stop(self, reason: Reason, why: str | None = None, *, saving_s: float | None = None) -> None:
        """Ask for the end; a weaker wish than an earlier one changes nothing, nor does one after the end.

        `saving_s` is how much longer than its grace a checkpoint may take; None: as long as any checkpoint. Being
        overtaken holds after the end too: nothing more may be told then.
        """
        if self.reason is not None and _RANK[self.reason] >= _RANK[reason]:
            return
        if self._pidfd is not None and is_over(self._pidfd):  # nobody has waited for it yet
            self.ended()
        if self._ended and reason is not Reason.FENCED:
            return
        self.reason, self.why = reason, why
        if self._pidfd is None or self._page is None:
            return
        self._log.info("attempt_stopping", reason=reason.value)
        self._page.command = _COMMANDS[reason]
        if reason is Reason.PAUSED:
            return
        self._signal()
        now_s, grace_s = time.monotonic(), self._settings.stop_grace_s
        grace_s = min(grace_s, _SHORT_GRACE_S.get(reason, grace_s))
        kill_at_s = now_s + grace_s
        self._kill_at_s = kill_at_s if self._kill_at_s is None else min(self._kill_at_s, kill_at_s)
        self._saving_until_s = now_s + (self._settings.save_limit_s if saving_s is None else grace_s + saving_s)

    def take_back(self) -> None:
        """Let a process that was to pause train on."""
        if self.reason is not Reason.PAUSED or self._ended:
            return
        self.reason = self.why = None
        if self._page is not None:
            self._page.command = Command.NONE
        self._log.info("pause_taken_back")

    def remind(self) -> None:
        """Tell a process whose loop is over of a pause.

        A loop looks at the page by itself, and a script's own handler of SIGTERM would leave it without saving.
        """
        page = self._page
        if self.reason is not Reason.PAUSED or page is None or page.signalled == page.asks:
            return
        if page.first is not None and page.phase is Phase.STARTING:
            self._signal()

    def overdue(self) -> bool:
        """Whether the process is to be killed now."""
        now_s = time.monotonic()
        if self._kill_at_s is None or now_s < self._kill_at_s:
            return False
        saves = self.reason in _MAY_FINISH_SAVING and self._page is not None and self._page.phase is Phase.SAVING
        if saves and now_s < self._saving_until_s:
            self._kill_at_s = now_s + _LEAVE_S
            return False
        self._kill_at_s = None
        return True

    def _signal(self) -> None:
        if self._pidfd is not None and self._page is not None:
            self._page.signals()
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)


def is_over(pidfd: int) -> bool:
    """Whether the process has exited, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
