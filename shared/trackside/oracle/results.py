"""I5, I6, I7 and I8: every step is there and right, checkpoints are good, little is redone, the result is the same.

I7 is judged twice. Steps done again are counted against the interval between checkpoints, and where the journal tells
that the next one was due and it does not tell that it was written, the steps done since then come on top: it was on
its way to the disk when the process died. That lasts an interval at most, or the run has said that its disk is slow or
full. And whatever was accepted, or written whole by the journal's word where somebody was left to take it in, must be
what the next attempt goes on from: there nothing is allowed for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from trackside.models import Attempt, EventKind, JobState, Reason
from trackside.oracle.costs import canonical, points, redone, same, summary
from trackside.oracle.history import History, JobHistory, Proof
from trackside.oracle.verdicts import JobRule

_GRACEFUL: Final = frozenset({Reason.PREEMPTED, Reason.PAUSED})
# Nobody was left, or allowed, to take in what these had written last.
_CUT_OFF: Final = frozenset({Reason.LOST, Reason.FENCED})
_SLOW_DISK: Final = ("was left out", "was not written")  # in the notes of a checkpoint that did not come to be


def _once(each: JobHistory, history: History) -> Iterator[str]:
    twice = sorted(point for point, times in points(each).items() if times > 1)
    if twice:
        yield f"{len(twice)} points are there twice, the first (series, attempt, step): {twice[0]}"


def _series(each: JobHistory, history: History) -> Iterator[str]:
    found = canonical(each)
    for name, expected in (each.expected.series or {}).items():
        here = found.get(name, {})
        missing = sorted(expected.keys() - here.keys())
        if missing:
            yield f"{name}: {len(missing)} steps are missing, the first {missing[0]}"
        more = sorted(here.keys() - expected.keys())
        if more:
            yield f"{name}: {len(more)} steps too many, the first {more[0]}"
        other = [step for step in sorted(expected.keys() & here.keys()) if not same(here[step], expected[step])]
        if other:
            step = other[0]
            yield f"{name}: {len(other)} values differ, the first at step {step}: {here[step]}, not {expected[step]}"


def _checkpoints(each: JobHistory, history: History) -> Iterator[str]:
    """The one that the record points to is there and whole; so are the older ones that were not pruned yet."""
    proofs, spoiled = each.proofs or (), each.expected.damaged
    for proof in proofs:
        if proof.error is not None and proof.name not in spoiled:
            yield f"{proof.name} was accepted and is no good: {proof.error}"
    if proofs and not proofs[0].there and proofs[0].name not in spoiled:
        yield f"{proofs[0].name} is the newest accepted one and is not there"
    whole = [proof.name for proof in proofs if proof.there and proof.error is None]
    if not whole and not spoiled.issuperset(proof.name for proof in proofs):
        yield f"of {len(proofs)} accepted checkpoints none can be loaded"


def _loads(each: JobHistory, history: History) -> Iterator[str]:
    for proof in _tried(each, history):
        if proof.loads is False and proof.name not in each.expected.damaged:
            yield f"{proof.name} does not load with weights_only: {proof.error}"


def _tried(each: JobHistory, history: History) -> list[Proof]:
    seen = [look.newest[each.job.id] for look in history.samples if each.job.id in look.newest]
    return [proof for proof in (*(each.proofs or ()), *seen) if proof.loads is not None]


def _at_every_look(each: JobHistory, history: History) -> Iterator[str]:
    told: set[str] = set()
    for look in history.samples:
        proof = look.newest.get(each.job.id)
        if proof is None or proof.name in each.expected.damaged | told:
            continue
        if not proof.there or proof.error is not None:
            told.add(proof.name)
            yield f"at {look.at_ms} ms the record pointed to {proof.name}: {proof.error or 'it was not there'}"


def _bounded_redo(each: JobHistory, history: History) -> Iterator[str]:
    for before, after, steps in redone(each):
        reason = before.outcome.reason if before.outcome else None
        limit = 0 if reason in _GRACEFUL else each.expected.redo_max
        if limit is None or steps <= limit:
            continue
        on_its_way = 0 if reason in _GRACEFUL else _on_its_way(each, before, after.resumed_step or 0, steps)
        if steps > limit + on_its_way:
            yield (
                f"{steps} steps were done again after attempt {before.number} ended {reason}; {limit} are allowed, and "
                f"{on_its_way} while a checkpoint was on its way to the disk"
            )


def _on_its_way(each: JobHistory, before: Attempt, began: int, steps: int) -> int:
    """How many of the steps that were done again had been done since a checkpoint was due that was never finished."""
    files = (each.files or {}).get(before.number)
    if files is None:
        return 0
    cut_off = before.outcome is not None and before.outcome.reason in _CUT_OFF
    there, last = began if cut_off else max((began, *files.saved)), began + steps
    due = min((step for step in files.due if there < step <= last), default=last)
    told = any(
        event.kind is EventKind.NOTE
        and event.attempt == before.number
        and any(words in str(event.data.get("text")) for words in _SLOW_DISK)
        for event in each.events
    )
    return last - due if told else min(last - due, each.expected.redo_max or 0)


def _goes_on_from_the_newest(each: JobHistory, history: History) -> Iterator[str]:
    for before, after, _ in _judged_pairs(each):
        began = after.resumed_step or 0
        accepted = _accepted_before(each, after)
        if accepted > began:
            yield f"attempt {after.number} went on from step {began}, a checkpoint of step {accepted} was accepted"
            continue
        reason = before.outcome.reason if before.outcome else None
        files = (each.files or {}).get(before.number)
        saved = max(files.saved, default=0) if files is not None else 0
        if reason not in _CUT_OFF and saved > began and not each.expected.damaged:
            yield f"attempt {after.number} went on from step {began}, attempt {before.number} had saved step {saved}"


def _judged_pairs(each: JobHistory) -> Iterator[tuple[Attempt, Attempt, int]]:
    """Attempts on one host that follow one another; who diverged, or was sent back by a person, goes further back."""
    if any(event.cause == "resume requested" and event.data.get("from") for event in each.events):
        return
    for before, after, steps in redone(each):
        reasons = [past.outcome.reason for past in each.attempts[: before.number] if past.outcome]
        if Reason.DIVERGED not in reasons and before.host == after.host:
            yield before, after, steps


def _accepted_before(each: JobHistory, after: Attempt) -> int:
    steps = [0]
    for event in each.events:
        if event.kind is EventKind.ASSIGNED and event.attempt == after.number:
            break
        if event.kind is EventKind.CHECKPOINT and event.data.get("name") not in each.expected.damaged:
            steps.append(int(event.data.get("step") or 0))
    return max(steps)


def _same_result(each: JobHistory, history: History) -> Iterator[str]:
    found = summary(each)
    for name, value in (each.expected.summary or {}).items():
        if name not in found or not same(found[name], value):
            yield f"{name} is {found.get(name)}, not {value}"


def _succeeded(each: JobHistory) -> bool:
    return each.job.state is JobState.SUCCEEDED


JOB_RULES: Final = (
    JobRule(invariant="I5", name="no step twice", sees=lambda each, history: bool(each.entries), broken=_once),
    JobRule(
        invariant="I5", name="the undisturbed run's series",
        sees=lambda each, history: bool(each.expected.series) and _succeeded(each),
        broken=_series,
    ),
    JobRule(
        invariant="I6", name="accepted checkpoints at the end", sees=lambda each, history: bool(each.proofs),
        broken=_checkpoints,
    ),
    JobRule(
        invariant="I6", name="the newest one at every look",
        sees=lambda each, history: any(each.job.id in look.newest for look in history.samples),
        broken=_at_every_look,
    ),
    JobRule(
        invariant="I6", name="loads with weights_only", sees=lambda each, history: bool(_tried(each, history)),
        broken=_loads,
    ),
    JobRule(
        invariant="I7", name="no more redone than allowed",
        sees=lambda each, history: any(
            each.expected.redo_max is not None or (before.outcome and before.outcome.reason in _GRACEFUL)
            for before, _, _ in redone(each)
        ),
        broken=_bounded_redo,
    ),
    JobRule(
        invariant="I7", name="goes on from the newest checkpoint",
        sees=lambda each, history: any(True for _ in _judged_pairs(each)),
        broken=_goes_on_from_the_newest,
    ),
    JobRule(
        invariant="I8", name="the undisturbed run's result",
        sees=lambda each, history: bool(each.expected.summary) and _succeeded(each),
        broken=_same_result,
    ),
)  # fmt: skip
