"""What the command line and the dashboard both say of a job, in the same words. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from trackside.models import Attempt, Failure, JobSpec, JobState, Reason


def program(spec: JobSpec) -> str:
    """The program with its arguments, as one types it."""
    module = ["-m"] if spec.program.kind == "module" else []
    return shlex.join([*module, spec.program.target, *spec.program.argv])


def stall_limit(limit_s: float | None, span: Callable[[float], str]) -> str:
    """After how long without a step it hangs; `span` writes a length of time."""
    if limit_s is None:
        return "learned from its own steps"
    return f"{span(limit_s)} without a step" if limit_s else "none: it is never taken for hung"


def end(attempt: Attempt) -> str:
    """How its process ended, and what is said of it: `SIGKILL: the host ran out of memory`; nothing while it runs."""
    outcome = attempt.outcome
    if outcome is None:
        return ""
    status = outcome.signal or (f"exit {outcome.exit_code}" if outcome.exit_code else None)
    told = ": ".join(filter(None, (status, outcome.detail)))
    return "; ".join(filter(None, (told, left_early(attempt))))


def left_early(attempt: Attempt | None) -> str | None:
    """That a script which has succeeded did not do all the steps it had announced, which is its right."""
    outcome = attempt.outcome if attempt is not None else None
    if attempt is None or outcome is None or outcome.reason is not Reason.SUCCEEDED:
        return None
    done, total = outcome.last_step, attempt.total_steps
    return f"left its loop after {done} of {total} steps" if done is not None and done < (total or 0) else None


def ran_ms(attempt: Attempt, now_ms: int) -> int | None:
    """How long its process has run, or did, whenever that was reported; None: it has not begun."""
    if attempt.outcome is not None and attempt.outcome.ran_ms is not None:
        return attempt.outcome.ran_ms
    if attempt.started_at_ms is None:
        return None
    return max(0, (attempt.ended_at_ms or now_ms) - attempt.started_at_ms)


def became(state: JobState | None) -> str:
    """What a job that does not succeed any more did; None: the bus does not have it."""
    if state is None:
        return "is no longer on the bus"
    return "was cancelled" if state is JobState.CANCELLED else state.value


def error(failure: Failure) -> str:
    """The exception in one line."""
    return f"{failure.type or 'error'}: {failure.message or ''}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 retry`, `2 retries`, `3 faults`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
