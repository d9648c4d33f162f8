"""A job's wish to pause: passed on where no step is lost by it, refused with the reason where some would be.

A run that starts has no step loop yet, and importing and loading may take long. Where something says that a loop will
come, a pause waits for as long as a start may take: the run has a checkpointer, an earlier attempt has stepped, or
`trackside.init()` was called and nothing was logged since, as a script that only logs would.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any, Final

from trackside.config import Settings
from trackside.models import EventKind, Job, Reason
from trackside.sdk import disk
from trackside.sdk.page import ControlPage
from trackside.store import Change, Store
from trackside_trainer.asking import Asking

_WAIT_S: Final = 10.0  # where nothing says that a loop will come
LOOP_BEGUN: Final = "step loop begun"
NO_LOOP: Final = (
    "it has not come to a step loop within {:g} s, and a script without one cannot be paused: pause it again once it "
    "steps, cancel it, or let it end"
)
NO_CHECKPOINTS: Final = (
    "this script saves no checkpoints, so a pause would lose all its steps: give what it trains to run.checkpointer(), "
    "or cancel it"
)
_LOOP_OVER: Final = "its newest steps are in no checkpoint, so it runs on: let it end, or cancel it"


class Pausing:
    """Looks after the pauses of one attempt."""

    def __init__(self, settings: Settings, store: Store, job: Job, asking: Asking, log: Any) -> None:
        self._store, self._job, self._asking, self._log = store, job, asking, log
        self._wait_s = _WAIT_S / settings.scale
        self._start_s = max(self._wait_s, settings.startup_limit_s)
        self._since_s: float | None = None  # when the wait for a loop began
        self._opened_ns: int | None = None  # of the page, at the look before
        self._only_logs = False  # so far
        self._stepped: bool | None = True if job.checkpoints else None  # before this attempt; None: not looked yet
        self._outdated: str | None = None  # a refusal's words, wrong once there are steps

    def wanted(self, page: ControlPage | None) -> None:
        """The job is to pause; `page` is there once its process is. Raises what the store does."""
        asking = self._asking
        if asking.reason not in (None, Reason.PAUSED):
            return
        if page is None:
            asking.stop(Reason.PAUSED)
        elif asking.reason is Reason.PAUSED and (trouble := page.refused) is not None:
            self._refuse(_unsaved(trouble))
        elif page.first is None:
            if page.saves:  # obeyed before the first step, if there is to be one
                asking.stop(Reason.PAUSED)
            self._wait_for_loop(page)
        elif page.saves:
            asking.stop(Reason.PAUSED)
        else:
            self._refuse(NO_CHECKPOINTS)

    def unwanted(self, page: ControlPage | None) -> None:
        """The job is to run. Raises what the store does."""
        self._since_s = None
        self._asking.take_back()
        if self._outdated is not None and page is not None and page.first is not None:
            self._correct(self._outdated)
            self._outdated = None

    def _wait_for_loop(self, page: ControlPage) -> None:
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s, self._opened_ns = now_s, page.opened_ns
        logged = self._opened_ns not in (None, page.opened_ns)
        if logged and not self._only_logs:
            self._only_logs, self._since_s = True, now_s
        self._opened_ns = page.opened_ns
        limit_s = self._start_s if self._loop_comes(page) else self._wait_s
        if now_s - self._since_s > limit_s:
            words = NO_LOOP.format(limit_s)
            self._refuse(words)
            self._outdated = words

    def _loop_comes(self, page: ControlPage) -> bool:
        if page.saves or (page.opened_ns is not None and not self._only_logs):
            return True
        if self._stepped is None:
            ends = [attempt.outcome for attempt in self._store.attempts(self._job) if attempt.outcome is not None]
            self._stepped = any(end.first_step is not None for end in ends)
        return self._stepped

    def _refuse(self, why: str) -> None:
        self._store.refuse_pause(self._job.id, self._job.attempt, why)
        self._log.info("pause_refused", why=why)
        self._asking.take_back()
        self._since_s = None

    def _correct(self, told: str) -> None:
        """Take a refusal's words off the job's record if they stand there yet."""

        def decide(job: Job, now: int) -> Change | None:
            if job.detail != told or job.attempt != self._job.attempt:
                return None
            text = "it makes steps now, so it can be paused if it saves them; the pause that was refused is over"
            event = self._store.job_event(job, EventKind.NOTE, now, cause=LOOP_BEGUN, text=text)
            return Change(job=replace(job, detail=None), events=(event,))

        self._store.change(self._job.id, decide)


def _unsaved(trouble: int) -> str:
    if trouble == 0:
        return _LOOP_OVER
    return (
        f"its checkpoint for the pause was not written ({os.strerror(trouble)}), so it runs on: "
        f"{disk.remedy(trouble)}, then pause it again"
    )
