"""I17 and I19: the events make the record, each decision follows from its inputs, and nothing happens without a cause.

I19 is judged by what happened: no end and no move but those that the fault is due to. A clock that is an hour wrong is
due to nothing, so there any end that is no success shows that some decision looked at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from trackside.models import Event, EventKind, JobState, Reason
from trackside.oracle.history import History, JobHistory, Rules
from trackside.oracle.verdicts import JobRule, SystemRule

# A move into these states is a person's wish, and the reason that an attempt ends with when it is heeded.
_WISHES: Final = {JobState.PAUSING: Reason.PAUSED, JobState.CANCELLING: Reason.CANCELLED}


def _folds(each: JobHistory, history: History) -> Iterator[str]:
    state: JobState | None = None
    number, slot, reason = 0, None, None
    accepted: set[str] = set()
    for event in each.events:
        if event.kind is EventKind.SUBMITTED:
            state = event.new
        elif event.kind is EventKind.TRANSITION and event.new is not None:
            if event.old is not state:
                yield f"a move from {event.old} to {event.new} while it was {state}"
            elif state is not None and not state.may_become(event.new):
                yield f"the move from {state} to {event.new} is not in the chart"
            state = event.new
        elif event.kind is EventKind.ASSIGNED:
            number, slot = event.attempt or 0, event.data.get("slot")
        elif event.kind is EventKind.ENDED:
            slot, reason = None, event.cause
        accepted.difference_update(event.data.get("gone") or ())
        if event.kind is EventKind.CHECKPOINT:
            accepted.add(str(event.data.get("name")))
    job = each.job
    folded = {"state": state, "attempt": number, "slot": slot, "reason": reason}
    stored = {"state": job.state, "attempt": job.attempt, "slot": job.slot, "reason": job.reason}
    for name, value in folded.items():
        if value != stored[name]:
            yield f"the events say {name} {value}, the record {stored[name]}"
    unknown = [ref.name for ref in job.checkpoints if ref.name not in accepted]
    if unknown:
        yield f"the record names checkpoints that no event accepted, or that were found gone: {unknown}"


def _decisions(events: Iterable[Event], rules: Rules) -> Iterator[str]:
    for event in events:
        broken = rules.differs(event) if rules.differs is not None else None
        if broken is not None:
            yield broken


def _only_what_was_due(each: JobHistory, history: History) -> Iterator[str]:
    due = each.expected.due or frozenset()
    over = True
    for event in each.events:
        if event.kind is EventKind.STARTED:
            over = False
        elif event.kind is EventKind.ENDED:
            over = True
            if event.cause not in {*due, Reason.SUCCEEDED}:
                yield f"attempt {event.attempt} ended {event.cause}, which nothing was due to"
        elif event.kind is EventKind.TRANSITION and event.new is not None:
            wish = _WISHES.get(event.new)
            if wish is not None and wish not in due:
                yield f"it became {event.new}, and nobody asked for it"
            elif wish is None and event.new is not JobState.RUNNING and not over:
                yield f"it became {event.new} in the middle of attempt {event.attempt}"


JOB_RULES: Final = (
    JobRule(invariant="I17", name="events fold to the record", sees=lambda each, history: True, broken=_folds),
    JobRule(
        invariant="I17", name="decisions about a job",
        sees=lambda each, history: history.rules.differs is not None,
        broken=lambda each, history: _decisions(each.events, history.rules),
    ),
    JobRule(
        invariant="I19", name="nothing that was not due", sees=lambda each, history: each.expected.due is not None,
        broken=_only_what_was_due,
    ),
)  # fmt: skip
SYSTEM_RULES: Final = (
    SystemRule(
        invariant="I17", name="decisions about slots",
        sees=lambda history: history.rules.differs is not None and bool(history.slots),
        broken=lambda history: _decisions(history.slots, history.rules),
    ),
)  # fmt: skip
