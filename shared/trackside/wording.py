"""What the command line and the dashboard both say of a job, in the same words. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from trackside.models import Failure, JobSpec, Outcome


def program(spec: JobSpec) -> str:
    """The program with its arguments, as one types it."""
    module = ["-m"] if spec.program.kind == "module" else []
    return shlex.join([*module, spec.program.target, *spec.program.argv])


def stall_limit(limit_s: float | None, span: Callable[[float], str]) -> str:
    """After how long without a step it hangs; `span` writes a length of time."""
    if limit_s is None:
        return "learned from its own steps"
    return f"{span(limit_s)} without a step" if limit_s else "none: it is never taken for hung"


def end(outcome: Outcome) -> str:
    """How the process ended, and what is said of it: `SIGKILL: the host ran out of memory`."""
    status = outcome.signal or (f"exit {outcome.exit_code}" if outcome.exit_code else None)
    return ": ".join(filter(None, (status, outcome.detail)))


def error(failure: Failure) -> str:
    """The exception in one line."""
    return f"{failure.type or 'error'}: {failure.message or ''}"
