"""Jobs that wait for other jobs: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from trackside.models import Job, JobState

RULE: Final = "parent did not succeed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a job may run: `parent` is the one that decided it."""

    answer: Literal["ready", "waits", "failed"]
    parent: str | None = None
    state: JobState | None = None  # the parent's; None: it is no longer on the bus

    @property
    def detail(self) -> str:
        """Why a job fails, for people."""
        what = f"{self.state}" if self.state is not None else "is no longer on the bus"
        return f"it was to run after {self.parent}, which {what}"


def waits(job: Job) -> bool:
    """Whether the job's parents still have a say: they have none once it has run."""
    return job.state is JobState.QUEUED and job.attempt == 0 and bool(job.spec.after)


def verdict(job: Job, states: Mapping[str, JobState | None]) -> Verdict:
    """Whether `job` may run, given its parents' states."""
    waiting: str | None = None
    for parent in job.spec.after:
        state = states.get(parent)
        if state is None or (state.terminal and state is not JobState.SUCCEEDED):
            return Verdict(answer="failed", parent=parent, state=state)
        if state is not JobState.SUCCEEDED:
            waiting = waiting or parent
    return Verdict(answer="waits", parent=waiting) if waiting else Verdict(answer="ready")
