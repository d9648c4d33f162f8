"""I3: one writer at a time. What an attempt wrote is closed when the next one is opened, on the bus and on the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from trackside.models import EventKind
from trackside.oracle.history import Entry, History, JobHistory
from trackside.oracle.verdicts import JobRule


def _in_order(each: JobHistory, history: History) -> Iterator[str]:
    for name, entries in (("metrics", each.entries), ("output", each.output)):
        newest, last = 0, -1
        for entry in entries:
            if (entry.attempt, entry.sequence) <= (newest, last):
                yield f"{name}: entry {entry.attempt}-{entry.sequence} stands after {newest}-{last}"
            newest, last = entry.attempt, entry.sequence
        if newest > each.job.attempt:
            yield f"{name}: there are entries of attempt {newest}, the job's newest is {each.job.attempt}"


def _decisions_in_order(each: JobHistory, history: History) -> Iterator[str]:
    current = 0
    for event in each.events:
        if event.kind is EventKind.ASSIGNED:
            current = event.attempt or 0
        elif event.attempt is not None and event.attempt < current:
            yield f"{event.kind} of attempt {event.attempt} after attempt {current} was opened"


def _closed_streams(each: JobHistory, history: History) -> Iterator[str]:
    """What is counted of an attempt when a newer one is there already is all that there will ever be of it."""
    job_id = each.job.id
    looks = [look.entries.get(job_id, {}) for look in history.samples]
    yield from _grown("entries of metrics", [*looks, _counts(each.entries)])
    looks = [look.output.get(job_id, {}) for look in history.samples]
    yield from _grown("pieces of output", [*looks, _counts(each.output)])


def _grown(what: str, looks: list[Mapping[int, int]]) -> Iterator[str]:
    closed: dict[int, int] = {}
    for counts in looks:
        for number, count in counts.items():
            if number in closed and count > closed[number]:
                yield f"attempt {number} wrote {count - closed[number]} {what} after a newer one was opened"
            if number < max(counts):
                closed.setdefault(number, count)


def _counts(entries: tuple[Entry, ...]) -> Counter[int]:
    return Counter(entry.attempt for entry in entries)


def _closed_files(each: JobHistory, history: History) -> Iterator[str]:
    """Nobody writes into the files of an attempt that has ended and whose processes are gone."""
    known: dict[int, int] = {}
    looks = [look.closed.get(each.job.id, {}) for look in history.samples]
    last = {number: files.journal_bytes + files.output_bytes for number, files in (each.files or {}).items()}
    for sizes in [*looks, {number: size for number, size in last.items() if any(number in look for look in looks)}]:
        for number, size in sizes.items():
            if known.setdefault(number, size) != size:
                yield f"the files of attempt {number} changed by {size - known[number]} bytes after it was gone"


def _no_more_than_the_files(each: JobHistory, history: History) -> Iterator[str]:
    """A stream holds no byte that its attempt's own file does not: nobody else shipped under its number."""
    for name, entries in (("metrics", each.entries), ("output", each.output)):
        reached: dict[int, int] = {}
        for entry in entries:
            reached[entry.attempt] = max(reached.get(entry.attempt, 0), entry.sequence)
        for number, files in (each.files or {}).items():
            size = files.journal_bytes if name == "metrics" else files.output_bytes
            if reached.get(number, 0) > size:
                yield f"{name} of attempt {number} reach byte {reached[number]}, its file has {size}"


def _looked(each: JobHistory, history: History) -> bool:
    return any(each.job.id in look.entries or each.job.id in look.output for look in history.samples)


JOB_RULES: Final = (
    JobRule(
        invariant="I3", name="streams in order", sees=lambda each, history: bool(each.entries or each.output),
        broken=_in_order,
    ),
    JobRule(
        invariant="I3", name="events in order", sees=lambda each, history: bool(each.events), broken=_decisions_in_order
    ),
    JobRule(invariant="I3", name="closed streams do not grow", sees=_looked, broken=_closed_streams),
    JobRule(
        invariant="I3", name="closed files do not change",
        sees=lambda each, history: any(look.closed.get(each.job.id) for look in history.samples),
        broken=_closed_files,
    ),
    JobRule(
        invariant="I3", name="streams hold what the files hold", sees=lambda each, history: bool(each.files),
        broken=_no_more_than_the_files,
    ),
)  # fmt: skip
