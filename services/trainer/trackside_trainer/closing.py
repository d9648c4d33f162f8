"""How an attempt's process ended: what was seen of it, and the outcome that is made of that."""

from __future__ import annotations

import time

from trackside.models import Outcome, Slot
from trackside.sdk.page import ControlPage
from trackside_trainer import evidence
from trackside_trainer.asking import Asking
from trackside_trainer.ending import CRASHES, Exit, end_of_page, judge, loader_was_killed
from trackside_trainer.folders import Folders
from trackside_trainer.gpulooks import LastLook
from trackside_trainer.shipping import end_record
from trackside_trainer.watchdog import Hung


class Closing:
    """Gathers what is known of the end, from the beginning on."""

    def __init__(self, slot: Slot, folders: Folders, *, seen_by: str) -> None:
        self.killed_by_us = False
        self.hung: Hung | None = None
        self._slot, self._folders, self._seen_by = slot, folders, seen_by
        self._memory_kills = evidence.MemoryKills.now()
        self._started_s = time.monotonic()
        self._ended_s: float | None = None
        self._status: int | None = None
        self._peak_mib: float | None = None
        self._gpu = LastLook(slot, ended_badly=False)

    @property
    def ran_s(self) -> float:
        """How long its process has run, or did."""
        return (self._ended_s or time.monotonic()) - self._started_s

    def started(self) -> None:
        """The process is there; what came before is not its time."""
        self._started_s = time.monotonic()

    def ended(self, status: int, peak_mib: float | None) -> None:
        """The process is not there any more; `status` is its wait status."""
        self._ended_s, self._status, self._peak_mib = time.monotonic(), status, peak_mib

    def look_at_gpu(self, *, asked: bool) -> None:
        """See whether its GPU is still there, after an end that nobody had asked for."""
        self._gpu = LastLook(self._slot, ended_badly=self._status != 0 and not asked)

    def known(self) -> bool:
        """Whether `outcome` has all that it needs; waits a moment for it."""
        return self._gpu.done()

    def outcome(self, page: ControlPage | None, asking: Asking) -> Outcome:
        """The attempt's one outcome."""
        end = end_record(self._folders.journal) or (end_of_page(page) if page else None)
        loader = loader_was_killed(end)
        seen = Exit(
            status=self._status,
            asked=asking.heard,
            why=asking.why,
            killed_by_us=self.killed_by_us,
            out_of_memory=evidence.killed_for_memory(self._memory_kills, self._peak_mib, loader=loader),
            lost_gpu=self._gpu.gone,
            stepless=page is not None and page.opened_ns is None and page.first is None,
        )
        return judge(
            end,
            seen,
            first_step=page.first if page else None,
            last_step=page.completed if page and page.first is not None else None,
            evidence=self._evidence(seen),
            seen_by=self._seen_by,
            noticed_after_ms=int((time.monotonic() - (self._ended_s or time.monotonic())) * 1000),
            ran_ms=int(self.ran_s * 1000),
        )

    def _evidence(self, seen: Exit) -> tuple[str, ...]:
        if seen.status == 0 and seen.asked is None:
            return ()
        output = self._folders.output
        crashed = seen.signal_name in CRASHES
        return evidence.bounded(
            (
                *(self.hung.evidence if self.hung is not None else ()),
                seen.out_of_memory if seen.signal_name in ("SIGKILL", None) else None,
                evidence.crash_dump(output) if crashed else None,
                evidence.last_lines(output, before_crash=crashed),
            )
        )
