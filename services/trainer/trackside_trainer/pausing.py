"""A job's wish to pause: passed on where no step is lost by it, refused with the reason where some would be."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from trackside.config import Settings
from trackside.models import Job, Reason
from trackside.sdk import disk
from trackside.sdk.page import ControlPage
from trackside.store import Store
from trackside_trainer.asking import Asking

_WAIT_S: Final = 10.0  # a script may be on its way to its loop
NO_LOOP: Final = "this script has no step loop, so it cannot be paused: cancel it or let it end"
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
        self._since_s: float | None = None

    def wanted(self, page: ControlPage | None) -> None:
        """The job is to pause; `page` is there once its process is. Raises what the store does."""
        asking = self._asking
        if asking.reason is Reason.PAUSED and page is not None and (trouble := page.refused) is not None:
            self._refuse(_unsaved(trouble))
            asking.take_back()
        elif asking.reason is not None:
            return
        elif page is None or (page.first is not None and page.saves):
            asking.stop(Reason.PAUSED)
        elif page.first is not None:
            self._refuse(NO_CHECKPOINTS)
        else:
            self._wait_for_loop()

    def unwanted(self) -> None:
        """The job is to run."""
        self._since_s = None
        self._asking.take_back()

    def _wait_for_loop(self) -> None:
        now_s = time.monotonic()
        self._since_s = self._since_s or now_s
        if now_s - self._since_s > self._wait_s:
            self._refuse(NO_LOOP)
            self._since_s = None

    def _refuse(self, why: str) -> None:
        self._store.refuse_pause(self._job.id, self._job.attempt, why)
        self._log.info("pause_refused", why=why)


def _unsaved(trouble: int) -> str:
    if trouble == 0:
        return _LOOP_OVER
    return (
        f"its checkpoint for the pause was not written ({os.strerror(trouble)}), so it runs on: "
        f"{disk.remedy(trouble)}, then pause it again"
    )
