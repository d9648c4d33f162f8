"""Somebody who looks at the dashboard all the while: by its own reader and user, beside the truth on the bus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from trackside.cli.throwaway import Throwaway, now_ms
from trackside.errors import TracksideError
from trackside.oracle import Shown
from trackside.server import client_url
from trackside_dashboard.hub import LIVE_AGE_S, Hub

_EVERY_S = 0.1


@dataclass(kw_only=True, slots=True)
class Eyes:
    """Of each thing, the oldest news that was shown as live."""

    system: Throwaway
    hub: Hub
    shown: dict[str, Shown] = field(default_factory=dict)
    looks: int = 0  # that showed something live

    @property
    def limit_s(self) -> float:
        """A sign of life outlasts its process by its TTL, and the dashboard calls live what it read not long ago."""
        return self.system.settings.beat_ttl_s + LIVE_AGE_S

    def look(self) -> None:
        asked = [job.id for job in self.hub.snapshot().jobs.values() if not job.state.terminal]
        truth = self.system.store.jobs(asked)
        at_ms = now_ms()
        health = self.hub.health()
        seen = self.hub.snapshot()  # not the older one of two
        if health.state != "live":
            return
        self.looks += 1
        for name, beat in seen.beats.items():
            if beat is not None:
                self._take(name, at_ms - beat.at_ms)
        for job in truth:
            shown = seen.jobs.get(job.id)
            if shown is None or shown.changed_at_ms > job.changed_at_ms:  # it has changed since the truth was asked for
                continue
            if shown.state is not job.state:
                self._take(f"{job.id} as {shown.state}", at_ms - job.changed_at_ms)

    def _take(self, what: str, age_ms: int) -> None:
        known = self.shown.get(what)
        if known is None or known.age_s < age_ms / 1000:
            self.shown[what] = Shown(what=what, live=True, age_s=age_ms / 1000, limit_s=self.limit_s)


@contextmanager
def eyes(system: Throwaway) -> Iterator[Eyes]:
    """Looks ten times a second until the block ends."""
    url = client_url(system.settings, "dashboard")  # it cannot be told while the server is away
    hub = Hub(lambda: url).start()
    it, over = Eyes(system=system, hub=hub), threading.Event()

    def run() -> None:
        while not over.wait(_EVERY_S):
            try:
                it.look()
            except TracksideError:  # nobody knows the truth while the server is away
                time.sleep(_EVERY_S)

    thread = threading.Thread(target=run, name="eyes", daemon=True)
    thread.start()
    try:
        yield it
    finally:
        over.set()
        thread.join()
        hub.stop()
