"""Each rule of the oracle finds what is planted for it, and says so when there is nothing that it could judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from histories import (
    BROKEN,
    EVENTS,
    GOOD,
    JOB,
    SERIES,
    Q,
    R,
    S,
    attempt,
    changed_event,
    entry,
    event,
    expecting,
    with_entries,
    with_event,
    without_event,
)
from trackside.models import Event, EventKind, JobState, Outcome, Reason
from trackside.oracle import (
    INVARIANTS,
    Denial,
    Entry,
    Expected,
    Files,
    History,
    Holdings,
    JobHistory,
    Operation,
    Proof,
    Rules,
    Sample,
    Shown,
    Usage,
    not_judged,
    verdict,
)

CALM = "train-2"
WRONG = "another decision"
GOOD_PROOF = Proof(name="step-2", there=True, loads=True)
HARMED = replace(
    GOOD,
    output=(Entry(attempt=1, sequence=0), Entry(attempt=1, sequence=5), Entry(attempt=2, sequence=0)),
    files={1: Files(journal_bytes=10, output_bytes=5, saved=(2,)), 2: Files(journal_bytes=10, output_bytes=0)},
    proofs=(GOOD_PROOF,),
    attempts=(
        replace(GOOD.attempts[0], outcome=Outcome(reason=Reason.KILLED, last_step=3, noticed_after_ms=20)),
        GOOD.attempts[1],
    ),
    expected=replace(
        GOOD.expected, harmed_at_ms=1005, noticed_max_s=30.0, stepping_max_s=60.0, due=frozenset({Reason.KILLED})
    ),
)


def of_calm(each: Event) -> Event:
    return replace(each, job=CALM, attempt=1 if each.attempt else None)


BYSTANDER = JobHistory(
    job=replace(GOOD.job, id=CALM, attempt=1, checkpoints=()),
    attempts=(replace(attempt(1, Reason.SUCCEEDED, 4), job=CALM),),
    events=tuple(of_calm(each) for each in (*EVENTS[:4], *EVENTS[-2:])),
    entries=(entry(1, 0), entry(1, 20, (1, 2, 3, 4), {"digest": "x"})),
    expected=Expected(
        attempts_max=1, series=dict(SERIES), summary={"digest": "x"}, step_s=0.001, bystander=True, due=frozenset()
    ),
)
LOOKS = (
    Sample(
        at_ms=1, states={JOB: R, CALM: R}, live=frozenset({JOB, CALM}), entries={JOB: {1: 2}}, output={JOB: {1: 2}},
        newest={JOB: GOOD_PROOF},
    ),
    Sample(
        at_ms=2, states={JOB: R, CALM: S}, live=frozenset({JOB}), entries={JOB: {1: 2, 2: 1}}, output={JOB: {1: 2}},
        closed={JOB: {1: 15}},
    ),
    Sample(at_ms=3, states={JOB: S, CALM: S}, live=frozenset()),
)  # fmt: skip
USAGE = {"supervisor": Usage(fds=20, rss_mib=60.0)}
WHOLE = History(
    submitted=(JOB, CALM),
    jobs=(HARMED, BYSTANDER),
    samples=LOOKS,
    slots=(Event(kind=EventKind.SLOT, at_ms=1, cause="cordoned"),),
    orphans=(),
    holdings=(
        Holdings(at_ms=1, usage=USAGE),
        Holdings(at_ms=3, usage=USAGE, streams={"ts:events": (100, 1000)}, unfinished={JOB: 0}, damaged={JOB: 0}),
    ),
    operations=(Operation(at_ms=1, what="submit", job=JOB), Operation(at_ms=1, what="submit", job=CALM)),
    shown=(Shown(what="a worker", live=True, age_s=1.0, limit_s=2.0),),
    denials=(Denial(what="XADD", by="dashboard", refused=True, told=True, survived=True),),
    rules=Rules(differs=lambda each: WRONG if each.cause == WRONG else None),
)
Plant = Callable[[History], History]


def job(change: Callable[[JobHistory], JobHistory]) -> Plant:
    return lambda history: replace(history, jobs=(change(HARMED), BYSTANDER))


def broken(name: str) -> Plant:
    return job(BROKEN[name].plant)


def bystander(change: Callable[[JobHistory], JobHistory]) -> Plant:
    return lambda history: replace(history, jobs=(HARMED, change(BYSTANDER)))


def looks(at: int, **fields: object) -> Plant:
    def plant(history: History) -> History:
        samples = list(history.samples)
        samples[at] = replace(samples[at], **fields)  # type: ignore[arg-type]  # test data
        return replace(history, samples=tuple(samples))

    return plant


def after(**fields: object) -> Plant:
    """Other holdings at the end."""
    return lambda history: replace(
        history,
        holdings=(history.holdings[0], replace(history.holdings[1], **fields)),  # type: ignore[arg-type]  # test data
    )


def straight_on(each: JobHistory) -> JobHistory:
    """Queued again at once, with nothing saved."""
    moved = changed_event(without_event(each, 7), 6, new=Q, data={})
    return without_event(moved, 4)


def barren(number: int) -> JobHistory:
    """Attempts in a row that brought nothing, each a second after the other."""
    events = [each for each in HARMED.events if each.kind is EventKind.SUBMITTED]
    for at in range(1, number + 1):
        events.append(event(EventKind.ASSIGNED, 1000 * at, at, data={"slot": "s"}))
        events.append(event(EventKind.ENDED, 1000 * at + 500, at, cause="killed"))
    attempts = tuple(attempt(at, Reason.KILLED, 1) for at in range(1, number + 1))
    return replace(HARMED, job=replace(HARMED.job, attempt=number), attempts=attempts, events=tuple(events))


def denied(**fields: object) -> Plant:
    return lambda history: replace(
        history,
        denials=(replace(history.denials[0], **fields),),  # type: ignore[arg-type]  # test data
    )


def asked(what: str, job_id: str = JOB) -> Plant:
    """One more wish, acknowledged."""
    wish = Operation(at_ms=2, what=what, job=job_id)
    return lambda history: replace(history, operations=(*(history.operations or ()), wish))


PLANTED: dict[str, list[Plant]] = {
    "I1 ends once": [broken("ended twice")],
    "I2 acknowledged jobs are there": [
        lambda h: replace(h, jobs=(HARMED,), operations=None),
        asked("submit", job_id="train-3"),
    ],
    "I2 at every look": [
        looks(1, states={CALM: S}),
        looks(2, live=frozenset({JOB})),
        looks(1, states={JOB: JobState.FAILED, CALM: S}, live=frozenset()),
        job(lambda h: replace(h, job=replace(h.job, state=JobState.FAILED))),
    ],
    "I3 streams in order": [
        broken("a stale entry"),
        job(lambda h: replace(h, output=(*h.output, Entry(attempt=1, sequence=9)))),
    ],
    "I3 events in order": [broken("a stale checkpoint")],
    "I3 closed streams do not grow": [
        looks(1, entries={JOB: {1: 1, 2: 1}}),
        looks(1, entries={}, output={JOB: {1: 1, 2: 1}}),
    ],
    "I3 closed files do not change": [looks(1, closed={JOB: {1: 14}})],
    "I3 streams hold what the files hold": [
        job(lambda h: replace(h, files={1: Files(journal_bytes=9, output_bytes=5, saved=(2,))})),
        job(lambda h: replace(h, files={1: Files(journal_bytes=10, output_bytes=4, saved=(2,))})),
    ],
    "I4 numbered attempts": [broken("a missing attempt")],
    "I4 no more attempts than due": [broken("too many attempts")],
    "I5 no step twice": [broken("a step twice in one attempt")],
    "I5 the undisturbed run's series": [broken("a step too many")],
    "I6 accepted checkpoints at the end": [
        job(lambda h: replace(h, proofs=(Proof(name="step-2", there=False), Proof(name="step-1", there=True)))),
        broken("a damaged checkpoint"),
    ],
    "I6 the newest one at every look": [looks(0, newest={JOB: Proof(name="step-2", there=False)})],
    "I6 loads with weights_only": [
        job(lambda h: replace(h, proofs=(replace(GOOD_PROOF, loads=False, error="a function"),))),
        looks(0, newest={JOB: replace(GOOD_PROOF, loads=False, error="a function")}),
    ],
    "I7 no more redone than allowed": [broken("too much redone")],
    "I7 goes on from the newest checkpoint": [
        job(lambda h: changed_event(h, 4, data={"name": "step-3", "step": 3})),
        job(lambda h: replace(h, files={1: Files(journal_bytes=10, output_bytes=5, saved=(2, 3))})),
    ],
    "I8 the undisturbed run's result": [broken("another result")],
    "I9 the fault is noticed": [job(lambda h: expecting(h, noticed_max_s=0.004))],
    "I9 an end is reported": [job(lambda h: expecting(h, noticed_max_s=0.019))],
    "I10 steps again": [job(lambda h: expecting(h, stepping_max_s=0.9))],
    "I10 an attempt given out begins": [job(lambda h: expecting(changed_event(h, 8, at_ms=900), stepping_max_s=1.0))],
    "I11 no process outlives its attempt": [lambda h: replace(h, orphans=("process 5",))],
    "I12 waits within the envelope": [
        broken("a wait beyond the envelope"),
        broken("a retry before its time"),
    ],
    "I12 poison": [job(lambda h: barren(4))],
    "I12 at once only with a checkpoint": [job(straight_on)],
    "I12 starts of a slot": [job(lambda h: barren(6))],
    "I13 a bystander keeps its attempt and state": [
        bystander(lambda h: replace(h, job=replace(h.job, attempt=2))),
        looks(0, states={JOB: R, CALM: JobState.WAITING}),
    ],
    "I13 a bystander keeps stepping": [
        bystander(
            lambda h: with_entries(
                h, h.entries[0],
                replace(h.entries[1], batch=replace(h.entries[1].batch, at_ms=(0, 1, 2, 30_000))),  # type: ignore[type-var]  # it has one
            )
        ),
    ],
    "I14 nothing old is shown as live": [
        lambda h: replace(h, shown=(Shown(what="a worker", live=True, age_s=2.1, limit_s=2.0),)),
    ],
    "I14 the dashboard's user wrote nothing": [denied(refused=False)],
    "I15 descriptors and memory": [
        after(usage={"supervisor": Usage(fds=90, rss_mib=60.0)}),
        after(usage={"supervisor": Usage(fds=20, rss_mib=400.0)}),
    ],
    "I15 lengths of streams": [after(streams={"ts:events": (1300, 1000)})],
    "I15 left on the disk": [after(unfinished={JOB: 1}), after(damaged={JOB: 3})],
    "I16 done once": [broken("submitted twice")],
    "I16 what was acknowledged is done": [
        asked("cancel"),
        asked("pause"),
        job(lambda h: changed_event(h, 6, cause="pause requested")),
        lambda h: replace(asked("cancel")(h), jobs=(replace(HARMED, job=replace(HARMED.job, state=JobState.FAILED)),)),
    ],
    "I17 events fold to the record": [broken("a move from nowhere")],
    "I17 decisions about a job": [job(lambda h: changed_event(h, 1, cause=WRONG))],
    "I17 decisions about slots": [lambda h: replace(h, slots=(replace(h.slots[0], cause=WRONG),))],
    "I18 forbidden is refused": [
        denied(by="trainer", refused=False), denied(told=False), denied(survived=False),
    ],
    "I19 nothing that was not due": [
        job(lambda h: expecting(h, due=frozenset())),
        bystander(lambda h: changed_event(h, 5, new=JobState.CANCELLING)),
        bystander(lambda h: with_event(h, event(EventKind.TRANSITION, 1500, 1, old=R, new=Q), at=4)),
    ],
}  # fmt: skip
CASES = [
    pytest.param(rule, plant, id=f"{rule} {n}") for rule, plants in PLANTED.items() for n, plant in enumerate(plants)
]


def test_a_whole_history_in_order_is_judged_by_every_rule_and_breaks_none() -> None:
    said = verdict(WHOLE)
    assert said.violations == ()
    assert said.not_judged == ()
    assert said.held


def test_there_is_a_rule_for_each_invariant_and_a_plant_for_each_rule() -> None:
    rules = not_judged(())
    assert {rule.split()[0] for rule in rules} == set(INVARIANTS)
    assert set(PLANTED) == set(rules)


@pytest.mark.parametrize(("rule", "plant"), CASES)
def test_a_rule_finds_what_is_planted_for_it(rule: str, plant: Plant) -> None:
    assert rule in {violation.rule for violation in verdict(plant(WHOLE)).violations}


def test_what_nobody_looked_at_is_not_judged_and_said_to_be_so() -> None:
    bare = replace(
        WHOLE, samples=(), slots=(), orphans=None, holdings=(), operations=None, shown=(), denials=(), rules=Rules(),
        jobs=tuple(replace(each, proofs=None, files=None, output=(), expected=Expected()) for each in WHOLE.jobs),
    )  # fmt: skip
    unseen = verdict(bare).not_judged
    assert unseen == not_judged(verdict(bare).judged)
    assert {rule.split()[0] for rule in unseen} == {
        *(
            "I2",
            "I3",
            "I4",
            "I5",
            "I6",
            "I7",
            "I8",
            "I9",
            "I10",
            "I11",
            "I13",
            "I14",
            "I15",
            "I16",
            "I17",
            "I18",
            "I19",
        ),
    }
    assert {rule.split()[0] for rule in verdict(bare).judged} == {
        *("I1", "I2", "I3", "I4", "I5", "I7", "I12", "I16", "I17")
    }


def test_of_no_jobs_nothing_is_judged() -> None:
    assert verdict(History(submitted=(), jobs=())).judged == ()


def test_a_checkpoint_that_an_attempt_on_another_host_or_after_a_divergence_passes_over_is_no_loss() -> None:
    elsewhere = replace(HARMED, attempts=(HARMED.attempts[0], replace(HARMED.attempts[1], host="other")))
    newer = changed_event(elsewhere, 4, data={"name": "step-3", "step": 3})
    assert "I7" not in {violation.invariant for violation in verdict(job(lambda h: newer)(WHOLE)).violations}


def test_who_was_cut_off_may_leave_a_half_written_checkpoint() -> None:
    cut_off = replace(HARMED, attempts=(attempt(1, Reason.LOST, 3), HARMED.attempts[1]))
    found = verdict(job(lambda h: cut_off)(after(unfinished={JOB: 1})(WHOLE))).violations
    assert "I15" not in {violation.invariant for violation in found}


def test_a_look_at_one_job_says_nothing_of_the_others() -> None:
    partial = Sample(at_ms=2, states={JOB: JobState.RUNNING}, live=frozenset({JOB}), partial=True)
    after_its_end = replace(WHOLE, samples=(*LOOKS, partial))
    assert verdict(after_its_end).violations == ()
    grown = replace(partial, entries={JOB: {1: 3, 2: 1}})
    found = verdict(replace(WHOLE, samples=(*LOOKS, grown))).violations
    assert {violation.rule for violation in found} == {"I3 closed streams do not grow"}


def test_the_documentation_tells_of_each_invariant() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text()
    told = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| I")]
    assert told == list(INVARIANTS)
