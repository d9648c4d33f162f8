"""The oracle: judges what a system left on its bus and on its disk against what Trackside promises. Pure.

`verdict` applies every rule to a history and tells broken promises, and also the rules that had nothing to judge: what
nobody looked at is never passed in silence. `measure` says what a fault cost; `witness` takes histories down. The
drill, the fault tests and the soak use this one checker, so a promise is written down once:

    I1  a job ends once                          I11 no process outlives its attempt
    I2  no submitted job is lost                 I12 no storm: retries wait, slots get few that bring nothing
    I3  one writer at a time                     I13 others are left in peace
    I4  attempts are numbered without a gap      I14 nothing old is shown as live, a reader writes nothing
    I5  every step is there, and right           I15 what is held stays within bounds
    I6  accepted checkpoints are good, always    I16 asked twice, done once
    I7  no more is redone than allowed           I17 the events fold to the record, decisions replay
    I8  the result is that of the undisturbed    I18 what is forbidden is refused
    I9  a fault is noticed                       I19 nothing happens that the fault is not due to
    I10 the work goes on

I1, I2, I4, I16 are in `lifecycle`, I3 in `writers`, I5 to I8 in `results`, I9, I10, I13 in `promptness`, I11, I12, I15
in `restraint`, I14, I18 in `honesty`, I17, I19 in `causes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from trackside.oracle import causes, honesty, lifecycle, promptness, restraint, results, writers
from trackside.oracle.costs import Cost, canonical, measure, redone, same, step_s, summary
from trackside.oracle.history import (
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
    Value,
)
from trackside.oracle.verdicts import INVARIANTS, JobRule, SystemRule, Verdict, Violation, order

__all__ = [
    # what is judged
    "Denial", "Entry", "Expected", "Files", "History", "Holdings", "JobHistory", "Operation", "Proof", "Rules",
    "Sample", "Shown", "Usage", "Value",
    # judging
    "INVARIANTS", "JOB_RULES", "SYSTEM_RULES", "Verdict", "Violation", "check", "not_judged", "verdict",
    # measuring
    "Cost", "canonical", "measure", "redone", "same", "step_s", "summary",
]  # fmt: skip

JOB_RULES: Final[tuple[JobRule, ...]] = (
    *lifecycle.JOB_RULES, *writers.JOB_RULES, *results.JOB_RULES, *promptness.JOB_RULES, *restraint.JOB_RULES,
    *causes.JOB_RULES,
)  # fmt: skip
SYSTEM_RULES: Final[tuple[SystemRule, ...]] = (
    *lifecycle.SYSTEM_RULES, *restraint.SYSTEM_RULES, *honesty.SYSTEM_RULES, *causes.SYSTEM_RULES
)  # fmt: skip


def check(history: History) -> list[Violation]:
    """Every broken promise in a history."""
    return list(verdict(history).violations)


def verdict(history: History) -> Verdict:
    """Apply every rule that has something to judge."""
    found: list[Violation] = []
    judged: dict[str, bool] = {}

    def take(rule: JobRule | SystemRule, job: str | None, seen: bool, broken: Iterable[str]) -> None:
        name = f"{rule.invariant} {rule.name}"
        judged[name] = judged.get(name, False) or seen
        if seen:
            found.extend(Violation(invariant=rule.invariant, job=job, what=what, rule=name) for what in broken)

    for system_rule in SYSTEM_RULES:
        take(system_rule, None, system_rule.sees(history), system_rule.broken(history))
    for rule in JOB_RULES:
        take(rule, None, False, ())
        for each in history.jobs:
            take(rule, each.job.id, rule.sees(each, history), rule.broken(each, history))
    seen = tuple(sorted((name for name, seen in judged.items() if seen), key=order))
    return Verdict(violations=tuple(found), judged=seen, not_judged=not_judged(seen))


def not_judged(judged: Iterable[str]) -> tuple[str, ...]:
    """The rules that are not among these: of one verdict, or of all of a run together."""
    known = {f"{rule.invariant} {rule.name}" for rule in SYSTEM_RULES}
    known |= {f"{rule.invariant} {rule.name}" for rule in JOB_RULES}
    return tuple(sorted(known - set(judged), key=order))
