"""What the reader knows at one moment. Frozen: sessions share it without locks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from trackside.models import Attempt, Beat, Breaker, Event, Job, Slot
from trackside_dashboard.lines import Line

_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Latest:
    """Where a job stands by its metrics."""

    step: int | None = None
    total: int | None = None
    values: Mapping[str, float] = field(default_factory=lambda: _NONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """One slot's recent beats, oldest first; None where a value was not known."""

    at_ms: tuple[int, ...] = ()
    load_pct: tuple[float | None, ...] = ()
    steps_per_s: tuple[float | None, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """What only the page of a job needs."""

    attempts: tuple[Attempt, ...] = ()
    history: tuple[Event, ...] = ()
    lines: Mapping[str, Line] = field(default_factory=lambda: _NONE)
    tails: Mapping[int, str] = field(default_factory=lambda: _NONE)  # by attempt: the end of its output
    cut: frozenset[int] = frozenset()  # attempts whose output began before its tail
    summary: Mapping[str, Any] = field(default_factory=lambda: _NONE)  # the run's results by name
    left_out: int = 0  # values of metrics beyond the number kept
    complete: bool = False  # all metrics written so far are in
    version: int = 0  # changes with anything above


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """Everything the reader knows; times by the server's clock."""

    version: int = 0
    at_ms: int = 0
    jobs: Mapping[str, Job] = field(default_factory=lambda: _NONE)
    order: tuple[str, ...] = ()  # job ids, newest first
    total_jobs: int = 0  # on the server, also those not in `jobs`
    slots: tuple[Slot, ...] = ()
    breakers: Mapping[str, Breaker] = field(default_factory=lambda: _NONE)  # by slot: those that are not simply closed
    beats: Mapping[str, Beat | None] = field(default_factory=lambda: _NONE)  # None: silent
    deadlines_ms: Mapping[str, int] = field(default_factory=lambda: _NONE)
    events: tuple[Event, ...] = ()  # newest last
    latest: Mapping[str, Latest] = field(default_factory=lambda: _NONE)
    reached: Mapping[str, int] = field(default_factory=lambda: _NONE)  # by job: its newest attempt's last known step
    traces: Mapping[str, Trace] = field(default_factory=lambda: _NONE)  # by slot
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NONE)  # by host: the newest
    views: Mapping[str, JobView] = field(default_factory=lambda: _NONE)
    refused: str | None = None  # why the server refuses to write at the moment, a key of `refusals.WORDS`


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """How fresh the snapshot is, by this process's monotonic clock."""

    state: Literal["live", "stale", "none"]  # none: no server was ever reached
    age_s: float | None = None
    seen_at_ms: int | None = None  # the server's time at the last good read
    error: str | None = None
    faults: int = 0  # of the reader itself; it goes on after each
    fault: str | None = None
