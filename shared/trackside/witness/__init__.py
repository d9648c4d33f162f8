"""The witness: takes down what a system's bus, disk and processes show, for the oracle to judge. Changes nothing."""

from __future__ import annotations

from trackside.witness.bus import entries, read, sample, slot_events
from trackside.witness.disk import prove
from trackside.witness.living import orphans, processes
from trackside.witness.observer import ORPHAN_LIMIT_S, Observer, holdings, observed

__all__ = [
    "ORPHAN_LIMIT_S",
    "Observer",
    "entries",
    "holdings",
    "observed",
    "orphans",
    "processes",
    "prove",
    "read",
    "sample",
    "slot_events",
]
