"""I11, I12 and I15: nothing outlives its attempt, retries do not storm, and what is held stays within bounds.

The bounds of what is held are wide, so that only something that grows without end exceeds them:

    descriptors    64 more in a process of one kind than before: a leak of one a fault would need many faults
    memory         256 MiB more: torch loaded once more is about that
    streams        what each is trimmed to, and two of the server's nodes of 100 entries, as trimming is approximate
    checkpoints    where a job succeeded none half written, but one for each attempt that was cut off, as nobody tidies
                   up after that; two set aside, as many as are kept to be looked at
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trackside.models import Event, EventKind, JobState, Reason
from trackside.oracle.history import History, JobHistory
from trackside.oracle.verdicts import JobRule, SystemRule

# Ends that count against a job; who was stopped or lost its host did nothing wrong.
_CRASHED: Final = frozenset({Reason.KILLED, Reason.USER_ERROR, Reason.STALLED, Reason.CUDA_ERROR})
_COUNTED: Final = _CRASHED | {Reason.OOM_HOST}
_BAD: Final = _COUNTED | {Reason.LOST}
_CUT_OFF: Final = frozenset({Reason.LOST, Reason.FENCED})
_MORE_FDS: Final = 64
_MORE_MIB: Final = 256.0
_NODES: Final = 200
_DAMAGED_KEPT: Final = 2


def _orphans(history: History) -> Iterator[str]:
    yield from history.orphans or ()


def _waits(each: JobHistory, history: History) -> Iterator[str]:
    """A backoff is within its envelope, and nothing is given out before it is over."""
    rules = history.rules
    not_before_ms: int | None = None
    for event in each.events:
        if event.kind is EventKind.TRANSITION and event.new is JobState.WAITING:
            wait_s, count = float(event.data.get("wait_s", 0.0)), int(event.data.get("barren", 0)) + 1
            if event.data.get("struck"):  # ends from outside are waited for from the second on
                count = int(event.data.get("host_faults", 0))
            most_s = min(rules.backoff_max_s, rules.backoff_first_s * 2 ** (count - 1)) if count else 0.0
            if not 0 <= wait_s <= most_s + 0.001:
                yield f"it waited {wait_s} s, the envelope after {count} in a row is {most_s} s"
            not_before_ms = event.at_ms + int(wait_s * 1000)
        elif event.cause == "resume requested":  # whoever resumes a job does not wait for its backoff
            not_before_ms = None
        elif event.kind is EventKind.ASSIGNED and not_before_ms is not None:
            if event.at_ms < not_before_ms - 1:
                yield f"attempt {event.attempt} was given out {not_before_ms - event.at_ms} ms before its backoff ended"
            not_before_ms = None


def _poison(each: JobHistory, history: History) -> Iterator[str]:
    saved, barren = _saved(each), 0
    for attempt in each.attempts:
        if attempt.number in saved:
            barren = 0
        elif attempt.outcome is not None and attempt.outcome.reason in _CRASHED:
            barren += 1
    if barren > history.rules.poison_after:
        yield f"{barren} attempts in a row brought nothing, {history.rules.poison_after} are the limit"


def _at_once(each: JobHistory, history: History) -> Iterator[str]:
    """A job whose attempt crashed is queued again without a wait only where that attempt brought a checkpoint."""
    saved = _saved(each)
    ended: Event | None = None
    for event in each.events:
        if event.kind is EventKind.ENDED:
            ended = event
        elif event.kind is EventKind.TRANSITION and ended is not None:
            straight = event.new is JobState.QUEUED and event.old is not JobState.WAITING
            if straight and ended.cause in _COUNTED and ended.attempt not in saved:
                yield f"it was queued again at once after attempt {ended.attempt} ended {ended.cause} and saved nothing"
            ended = None


def _saved(each: JobHistory) -> set[int | None]:
    return {event.attempt for event in each.events if event.kind is EventKind.CHECKPOINT}


def _slots(history: History) -> Iterator[str]:
    """On one slot no more attempts end badly with nothing saved than a process may be restarted in that time."""
    rules = history.rules
    starts: dict[str, list[int]] = {}
    for each in history.jobs:
        saved = _saved(each)
        bad = {a.number for a in each.attempts if a.outcome and a.outcome.reason in _BAD and a.number not in saved}
        for event in each.events:
            if event.kind is EventKind.ASSIGNED and event.attempt in bad:
                starts.setdefault(str(event.data.get("slot")), []).append(event.at_ms)
    for slot, unsorted in sorted(starts.items()):
        times = sorted(unsorted)
        for first, last in zip(times, times[rules.restart_intensity :], strict=False):
            if last - first <= rules.restart_period_s * 1000:
                yield (
                    f"slot {slot} got {rules.restart_intensity + 1} attempts within {(last - first) / 1000:.1f} s that "
                    f"brought nothing; {rules.restart_intensity} in {rules.restart_period_s:g} s are the limit"
                )
                break


def _growth(history: History) -> Iterator[str]:
    before, after = history.holdings[0].usage, history.holdings[-1].usage
    for kind in sorted(before.keys() & after.keys()):
        fds, mib = after[kind].fds - before[kind].fds, after[kind].rss_mib - before[kind].rss_mib
        if fds > _MORE_FDS:
            yield f"{kind} holds {fds} descriptors more than before: {after[kind].fds}"
        if mib > _MORE_MIB:
            yield f"{kind} holds {mib:.0f} MiB more than before: {after[kind].rss_mib:.0f}"


def _streams(history: History) -> Iterator[str]:
    for name, (entries, limit) in sorted(history.holdings[-1].streams.items()):
        if entries > limit + _NODES:
            yield f"{name} has {entries} entries, it is trimmed to {limit}"


def _left_on_the_disk(history: History) -> Iterator[str]:
    for each in history.jobs:
        cut_off = sum(a.outcome is not None and a.outcome.reason in _CUT_OFF for a in each.attempts)
        count = history.holdings[-1].unfinished.get(each.job.id, 0)
        if count > cut_off:
            yield f"{each.job.id} keeps {count} checkpoints that were left half written"
    for job, count in sorted(history.holdings[-1].damaged.items()):
        if count > _DAMAGED_KEPT:
            yield f"{job} keeps {count} damaged checkpoints, {_DAMAGED_KEPT} are the limit"


def _ended(each: JobHistory, history: History) -> bool:
    return any(event.kind is EventKind.ENDED and event.cause != Reason.SUCCEEDED for event in each.events)


JOB_RULES: Final = (
    JobRule(
        invariant="I12",
        name="waits within the envelope",
        sees=lambda each, history: any(event.new is JobState.WAITING for event in each.events),
        broken=_waits,
    ),
    JobRule(invariant="I12", name="poison", sees=_ended, broken=_poison),
    JobRule(invariant="I12", name="at once only with a checkpoint", sees=_ended, broken=_at_once),
)
SYSTEM_RULES: Final = (
    SystemRule(
        invariant="I11", name="no process outlives its attempt", sees=lambda history: history.orphans is not None,
        broken=_orphans,
    ),
    SystemRule(
        invariant="I12", name="starts of a slot",
        sees=lambda history: any(_ended(each, history) for each in history.jobs),
        broken=_slots,
    ),
    SystemRule(
        invariant="I15", name="descriptors and memory",
        sees=lambda history: len(history.holdings) > 1
        and bool(history.holdings[0].usage.keys() & history.holdings[-1].usage.keys()),
        broken=_growth,
    ),
    SystemRule(
        invariant="I15", name="lengths of streams",
        sees=lambda history: bool(history.holdings) and bool(history.holdings[-1].streams),
        broken=_streams,
    ),
    SystemRule(
        invariant="I15", name="left on the disk", sees=lambda history: bool(history.holdings), broken=_left_on_the_disk
    ),
)  # fmt: skip
