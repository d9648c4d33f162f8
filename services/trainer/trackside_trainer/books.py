"""What the agent tells the server: its slots, its beat, and samples of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from trackside.bus import beats, keys, streams
from trackside.config import Settings
from trackside.errors import ConfigurationError
from trackside.models import Beat, Role
from trackside.store import Store
from trackside_trainer.places import Place
from trackside_trainer.samples import HostSampler

_PATIENCE_TTLS: Final = 2


class Books:
    """The agent's entries on the server. Each method may raise BusError, and is then to be called again."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        places: Mapping[str, Place],
        *,
        host: str,
        storage: str,
        on_registered: Callable[[], object],
    ) -> None:
        self.registered = False
        self.failed: ConfigurationError | None = None  # another agent serves these slots
        self._settings, self._store, self._places = settings, store, places
        self._host, self._storage, self._on_registered = host, storage, on_registered
        self._client = store.client
        self._machine = HostSampler()
        self._patient_until_s = time.monotonic() + _PATIENCE_TTLS * settings.beat_ttl_s
        self._started_at_ms = time.time_ns() // 1_000_000

    def beat(self, *, stopping: bool = False) -> None:
        """Say that this agent lives, once its slots are written."""
        if not stopping and not (self.registered and self._listed()):
            self._register()
        beat = Beat(
            role=Role.AGENT, name=self._host, host=self._host, pid=os.getpid(), started_at_ms=self._started_at_ms,
            at_ms=0, stopping=stopping, children=self.worker_pids(),
        )  # fmt: skip
        if self.registered:
            beats.publish(self._client, beat, self._settings.beat_ttl_s)

    def sample(self, gpus: list[dict[str, Any]]) -> None:
        """Tell what GPUs, host and workers use."""
        sample: dict[str, Any] = {"gpus": gpus, **self._machine.sample(self.worker_pids())}
        streams.add_sample(self._client, self._host, sample)

    def worker_pids(self) -> dict[str, int]:
        """By slot, the process of each living worker."""
        return {name: place.worker.pid for name, place in self._places.items() if place.worker is not None}

    def retire_worker(self, place: Place) -> None:
        """Take back the beat of a dead worker, or its slot would be given work meanwhile."""
        beats.retire(self._client, Role.WORKER, place.slot.id)

    def retire_slot(self, place: Place) -> None:
        """Take a slot off the books that nobody serves any more."""
        self._store.retire_slot(place.slot.id)

    def close(self) -> None:
        """Take all of it back, at an orderly stop."""
        if not self.registered:
            return
        for place in self._places.values():
            self.retire_slot(place)
        beats.retire(self._client, Role.AGENT, self._host)

    def _listed(self) -> bool:
        """Whether the server still has our slots; one that came back empty or older may not."""
        wanted = [place.slot.id for place in self._places.values() if place.wanted]
        return not wanted or all(self._client.smismember(keys.SLOTS, wanted))

    def _register(self) -> None:
        """Write our slots, and take those off the books that an earlier agent of this home had and nobody serves."""
        known = {slot.id: slot for slot in self._store.slots()}
        foreign = [name for name in self._places if name in known and known[name].storage != self._storage]
        other = beats.read(self._client).get(f"{Role.AGENT}:{self._host}")
        if foreign and other is not None and other.pid != os.getpid():
            if time.monotonic() >= self._patient_until_s:  # before, it is perhaps the last beat of one that is gone
                # Two workers on one queue would take each other's attempts.
                self.failed = ConfigurationError(
                    f"another trainer (process {other.pid} on {other.host}) serves {', '.join(foreign)}: "
                    "set TRACKSIDE_HOST to a name of its own for each",
                    setting="TRACKSIDE_HOST",
                )
            return
        for place in self._places.values():
            if place.wanted:
                self._store.register_slot(place.slot)
        for slot in known.values():
            if slot.host == self._host and slot.storage == self._storage and slot.id not in self._places:
                self._store.retire_slot(slot.id)
        self._on_registered()
        self.registered = True
