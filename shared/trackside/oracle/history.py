"""What the oracle judges: the observations of one run of a system, as records. `witness` takes them down.

None, or an empty tuple of looks, says that nobody looked; the rules that need it then have nothing to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trackside.models import Attempt, Batch, Event, Job, JobState, Reason

Value = float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of a fenced stream, in the stream's order; of metrics with a batch, unless it opens an attempt."""

    attempt: int
    sequence: int
    batch: Batch | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What looking at one accepted checkpoint on the disk gave."""

    name: str
    there: bool
    error: str | None = None  # why it does not verify, or does not load
    loads: bool | None = None  # with weights_only; None: nobody tried


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What one attempt left on the disk of the host that was looked at."""

    journal_bytes: int
    output_bytes: int
    saved: tuple[int, ...] = ()  # the steps whose checkpoints its journal says were written whole
    due: tuple[int, ...] = ()  # the steps after which, it says, a checkpoint was to be written


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the observer knows of a job beforehand; None where it does not matter or is not known."""

    states: frozenset[JobState] | None = None  # in which of them it may end
    redo_max: int | None = None  # steps that one failure may cost
    attempts_max: int | None = None
    reasons: tuple[frozenset[Reason], ...] | None = None  # of the first attempts, what each may end with
    due: frozenset[Reason] | None = None  # all that any attempt may end with, beside success
    series: dict[str, dict[int, Value]] | None = None  # of the undisturbed run
    summary: dict[str, Any] | None = None  # of the undisturbed run
    damaged: frozenset[str] = frozenset()  # checkpoints that the observer spoiled
    harmed_at_ms: int | None = None  # when it was harmed, by the server's clock
    noticed_max_s: float | None = None  # longer than this only if something is stuck: see `promptness`
    stepping_max_s: float | None = None  # the same, until it steps again
    step_s: float | None = None  # of the undisturbed run
    bystander: bool = False  # nothing was done to it or to its host's processes at large


@dataclass(frozen=True, kw_only=True, slots=True)
class JobHistory:
    """All that the bus holds of one job, and what the disk said."""

    job: Job
    attempts: tuple[Attempt, ...] = ()
    events: tuple[Event, ...] = ()
    entries: tuple[Entry, ...] = ()  # of its metrics
    output: tuple[Entry, ...] = ()
    proofs: tuple[Proof, ...] | None = None  # of its accepted checkpoints, newest first
    files: dict[int, Files] | None = None  # by attempt
    expected: Expected = field(default_factory=Expected)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One look at the running system. What is not looked at each time is left out."""

    at_ms: int
    states: dict[str, JobState]
    live: frozenset[str]
    entries: dict[str, dict[int, int]] = field(default_factory=dict)  # job -> attempt -> entries of its metrics
    output: dict[str, dict[int, int]] = field(default_factory=dict)  # job -> attempt -> pieces of its output
    closed: dict[str, dict[int, int]] = field(default_factory=dict)  # job -> dead attempt -> bytes of its files
    newest: dict[str, Proof] = field(default_factory=dict)  # job -> the checkpoint that its record points to
    attempts: dict[str, int] = field(default_factory=dict)  # job -> its current attempt's number
    partial: bool = False  # of some jobs only, by another clock: says nothing about states and about who is missing


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The most that any process of one kind holds."""

    fds: int
    rss_mib: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Holdings:
    """What the system holds at one moment."""

    at_ms: int
    usage: dict[str, Usage] = field(default_factory=dict)  # kind of process -> the most that one of them holds
    streams: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> entries, and how many it is trimmed to
    unfinished: dict[str, int] = field(default_factory=dict)  # job that ended well -> checkpoints left half written
    damaged: dict[str, int] = field(default_factory=dict)  # job -> checkpoints set aside


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Something that a dashboard shows to people, and how old the news behind it is."""

    what: str
    live: bool  # shown as it is now, not as it was
    age_s: float
    limit_s: float  # TTL and refresh: older news may not be shown as live


@dataclass(frozen=True, kw_only=True, slots=True)
class Denial:
    """Something forbidden that was tried."""

    what: str
    by: str  # the user of the bus, or whoever tried
    refused: bool
    told: bool | None = None  # somebody who looks can read that it was tried; None: nobody looked
    survived: bool | None = None  # whom it was tried on is still there


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """What somebody asked for: submit, cancel, pause or resume; without an error it was acknowledged."""

    at_ms: int
    what: str
    job: str
    error: str | None = None  # the answer; where none was heard it may have been done all the same


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """The settings that promises are measured by."""

    backoff_first_s: float = 2.0
    backoff_max_s: float = 300.0
    poison_after: int = 3
    restart_intensity: int = 5
    restart_period_s: float = 60.0
    # How the decision that an event tells differs from the one its inputs lead to (None: not); None: nobody looks.
    differs: Callable[[Event], str | None] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """Everything that is judged together. `over`: the system was left to finish, so every job must have ended."""

    submitted: tuple[str, ...]  # what was acknowledged
    jobs: tuple[JobHistory, ...]
    samples: tuple[Sample, ...] = ()
    slots: tuple[Event, ...] = ()  # what was told of slots
    orphans: tuple[str, ...] | None = None  # processes that outlived their attempts
    holdings: tuple[Holdings, ...] = ()  # before and after
    operations: tuple[Operation, ...] | None = None  # all that was asked of these jobs, in order
    shown: tuple[Shown, ...] = ()
    denials: tuple[Denial, ...] = ()
    rules: Rules = field(default_factory=Rules)
    over: bool = True
