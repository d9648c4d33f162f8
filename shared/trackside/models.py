"""The records on the bus, their states and their reasons. Frozen: a change makes a new record.

Times ending in `_ms` are milliseconds since the epoch by the Redis server's clock. `None` means "not known" or
"not yet".
Steps count from 1; a checkpoint "of step n" holds the state after step n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal


class JobState(StrEnum):
    """Where a job is. Terminal states are reached once and never left."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"  # backing off until `retry_at_ms`
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL

    def may_become(self, other: JobState) -> bool:
        """Whether the move is legal; staying is no move."""
        return other in MOVES[self]


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
# An attempt may be on a slot in these states.
ACTIVE: Final = frozenset({JobState.RUNNING, JobState.PAUSING, JobState.CANCELLING})
_Q, _R, _W = JobState.QUEUED, JobState.RUNNING, JobState.WAITING
MOVES: Final[dict[JobState, frozenset[JobState]]] = {
    _Q: frozenset(
        {_R, _W, JobState.PAUSING, JobState.PAUSED, JobState.CANCELLING, JobState.CANCELLED, JobState.FAILED}
    ),
    _R: frozenset({_Q, _W, JobState.PAUSING, JobState.PAUSED, JobState.CANCELLING, *TERMINAL}),
    _W: frozenset({_Q, JobState.PAUSED, JobState.CANCELLED, JobState.FAILED}),
    # Back to running: some scripts cannot pause, a checkpoint may fail, and a pause may be taken back.
    JobState.PAUSING: frozenset({_R, JobState.PAUSED, JobState.CANCELLING, *TERMINAL}),
    JobState.PAUSED: frozenset({_Q, JobState.CANCELLED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED}),
    **{state: frozenset() for state in TERMINAL},
}


class Reason(StrEnum):
    """Why an attempt ended; each attempt has exactly one."""

    SUCCEEDED = "succeeded"
    USER_ERROR = "user_error"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    CUDA_ERROR = "cuda_error"
    GPU_LOST = "gpu_lost"
    DIVERGED = "diverged"
    STALLED = "stalled"
    TIMEOUT = "timeout"
    KILLED = "killed"
    LOST = "lost"
    PREEMPTED = "preempted"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FENCED = "fenced"
    INVALID_JOB = "invalid_job"


# Ends behind which nothing went wrong: the program was done, or somebody asked it to stop.
GOOD_ENDS: Final = frozenset({Reason.SUCCEEDED, Reason.PREEMPTED, Reason.PAUSED, Reason.CANCELLED})


class AttemptState(StrEnum):
    """Where an attempt is: given to a slot, claimed by its worker, over."""

    ASSIGNED = "assigned"
    RUNNING = "running"
    ENDED = "ended"


class EventKind(StrEnum):
    """What an event tells."""

    SUBMITTED = "submitted"
    TRANSITION = "transition"  # a job's state changed
    ASSIGNED = "assigned"  # an attempt was given to a slot
    STARTED = "started"  # its worker claimed it
    RESTORED = "restored"  # it loaded a checkpoint
    CHECKPOINT = "checkpoint"
    ENDED = "ended"  # it is over, with its reason
    NOTE = "note"  # a remark or warning from the run or a service
    SLOT = "slot"  # a slot was cordoned or uncordoned, or its circuit breaker moved


class Role(StrEnum):
    """The kinds of process of the system."""

    LAUNCHER = "launcher"
    SUPERVISOR = "supervisor"
    AGENT = "agent"
    WORKER = "worker"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run: a script's path inside the snapshot, a module, or `package.module:function`."""

    kind: Literal["script", "module", "function"]
    target: str
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """What a user submits. Never changes after that."""

    program: Program
    params: dict[str, Any] = field(default_factory=dict)
    snapshot: str | None = None  # SHA-256 of the submitted folder's archive; None: nothing but installed code
    python: str | None = None  # another interpreter's path on the trainer's host
    device: Literal["any", "cpu", "gpu"] = "any"
    retries: int = 4
    timeout_s: float | None = None  # running time of the whole job, attempts added up
    attempt_timeout_s: float | None = None  # running time of each attempt
    submitted_by: str | None = None  # user@host, for people
    priority: Literal["high", "normal", "low"] = "normal"  # which queued job gets the next free slot
    after: tuple[str, ...] = ()  # ids of jobs that must succeed first
    retry_of: str | None = None  # the ended job that this one does again
    slot: str | None = None  # run on this slot only
    stall_limit_s: float | None = None  # no step for so long is a hang; 0: nothing is; None: by the run's own pace


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRef:
    """An accepted checkpoint: a directory's name, and where it lies."""

    name: str
    step: int
    attempt: int
    digest: str  # SHA-256 of its manifest
    storage: str  # id of the data folder that holds it
    bytes: int | None = None
    at_ms: int | None = None
    job: str | None = None  # the job in whose folder it lies, where that is another one; `attempt` is 0 then


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job's record: the truth about it."""

    id: str
    name: str
    state: JobState
    spec: JobSpec
    created_at_ms: int
    changed_at_ms: int  # of `state`
    attempt: int = 0  # the current attempt's number, which is the fencing token; 0: none yet
    slot: str | None = None  # of the current attempt, from assignment to its end
    reason: Reason | None = None  # of the newest attempt that ended
    detail: str | None = None  # one sentence for people: why it is in this state
    retry_at_ms: int | None = None  # while waiting
    failures: int = 0  # ended attempts that used up the retry budget since the last newer checkpoint
    barren: int = 0  # ended attempts in a row that brought no newer checkpoint
    host_faults: int = 0  # attempts in a row lost with their host or stopped by a stranger, with no newer checkpoint
    rollbacks: int = 0  # divergences in a row, with no checkpoint beyond `bad_step`
    bad_step: int | None = None  # where the newest divergence began
    ran_ms: int = 0  # running time of ended attempts, added up
    first_started_at_ms: int | None = None
    ended_at_ms: int | None = None
    checkpoints: tuple[CheckpointRef, ...] = ()  # accepted ones, newest first


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What is known about an attempt's bad end."""

    type: str | None = None  # exception class
    message: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attempt ended, as whoever saw it end reports it."""

    reason: Reason
    detail: str | None = None
    exit_code: int | None = None
    signal: str | None = None  # SIGKILL, ...
    first_step: int | None = None
    last_step: int | None = None  # the last completed one
    bad_step: int | None = None  # diverged: the first step whose watched metric was no finite number
    failure: Failure | None = None
    evidence: tuple[str, ...] = ()  # what it was judged by, for people; 8 KiB at most
    seen_by: str | None = None  # role:name of the reporter
    noticed_after_ms: int | None = None  # from the death to the report, where the reporter can tell
    ran_ms: int | None = None  # of its process; what came before, such as a wait for a GPU, does not count
    rule: str | None = None  # lost: by which rule it was taken for lost
    stranger: bool = False  # preempted: somebody other than Trackside asked it to stop


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One execution of a job."""

    job: str
    number: int
    state: AttemptState
    slot: str
    host: str
    assigned_at_ms: int
    pid: int | None = None
    worker_pid: int | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    resumed_from: str | None = None  # checkpoint name
    resumed_step: int | None = None
    total_steps: int | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One GPU or one CPU share on a host."""

    id: str
    host: str
    kind: Literal["cpu", "gpu"]
    storage: str  # id of the data folder that its attempts write checkpoints to
    threads: int = 1
    gpu_uuid: str | None = None
    gpu_name: str | None = None
    gpu_memory_mib: int | None = None
    registered_at_ms: int = 0
    cordoned: bool = False
    cordon_reason: str | None = None  # where an agent cordoned it, since its GPU is broken
    blocked: str | None = None  # why its GPU can take no job at the moment; None: it can
    throttled: str | None = None  # why its GPU runs more slowly than it could


class BreakerState(StrEnum):
    """Whether a slot gets work."""

    CLOSED = "closed"  # it does
    OPEN = "open"  # too many different jobs failed on it: it rests until `until_ms`
    PROBING = "probing"  # it gets a self-test, whose end decides


@dataclass(frozen=True, kw_only=True, slots=True)
class Breaker:
    """A slot's circuit breaker. A slot without a record has a closed one."""

    slot: str
    state: BreakerState = BreakerState.CLOSED
    failed: tuple[str, ...] = ()  # ids of the different jobs that crashed on it since the last success
    openings: int = 0  # since it was last closed; the rest grows with it
    until_ms: int | None = None  # while open
    probe: str | None = None  # id of the self-test's job, while probing


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """A sign of life of one process, rewritten every beat and gone after its TTL."""

    role: Role
    name: str  # worker: its slot; agent: its host; supervisor and launcher: host and pid
    host: str
    pid: int
    started_at_ms: int
    at_ms: int
    slot: str | None = None
    job: str | None = None
    attempt: int | None = None
    attempt_pid: int | None = None
    step: int | None = None
    total: int | None = None
    step_age_s: float | None = None  # since the last step boundary, by the worker's monotonic clock
    steps_per_s: float | None = None
    stopping: bool = False  # takes no more work
    blocked: str | None = None  # why it takes no work at the moment: its disk is full; None: it does
    leader: bool | None = None  # supervisors only
    cpu_pct: float | None = None  # of one core, the attempt's whole process tree
    rss_mib: float | None = None
    gpu_util_pct: float | None = None
    gpu_memory_mib: float | None = None
    children: dict[str, int] = field(default_factory=dict)  # the launcher's: service name -> pid

    def last_step_s(self, now_ms: int) -> float | None:
        """How long ago the newest step was done; None where nothing of it is known, such as before the first."""
        if self.step is None or self.step_age_s is None:
            return None
        return round(self.step_age_s + max(0, now_ms - self.at_ms) / 1000, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One entry of the history, and the same message on the status channel."""

    kind: EventKind
    at_ms: int
    job: str | None = None
    attempt: int | None = None
    cause: str | None = None  # which rule or request made it happen
    old: JobState | None = None
    new: JobState | None = None
    by: str | None = None  # role:name of the writer
    data: dict[str, Any] = field(default_factory=dict)  # the inputs behind it


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Some journal lines of one attempt as columns: one entry of a metrics stream.

    `steps`, `at_ms` and every list in `series` have one length, a point each; a gap is None, and a value
    JSON has no number for is one of the strings "NaN", "Infinity", "-Infinity".
    """

    steps: tuple[int, ...] = ()
    at_ms: tuple[int, ...] = ()
    series: dict[str, tuple[float | str | None, ...]] = field(default_factory=dict)
    total: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)
