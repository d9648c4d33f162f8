"""Jobs that wait for other jobs: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from trackside import wording
from trackside.models import Job, JobState

RULE: Final = "parent did not succeed"
SUCCEEDED: Final = "parents succeeded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a job may run: `parent` is the one that decided it."""

    answer: Literal["ready", "waits", "failed"]
    parent: str | None = None
    state: JobState | None = None  # the parent's; None: it is no longer on the bus
    states: dict[str, JobState | None] = field(default_factory=dict)  # of all parents, as they were seen

    @property
    def detail(self) -> str:
        """Why a job fails, for people."""
        return f"it was to run after {self.parent}, which {wording.became(self.state)}"

    @property
    def inputs(self) -> dict[str, Any]:
        """What the verdict was reached from, to be recorded."""
        return {"parents": {parent: state and state.value for parent, state in self.states.items()}}


def waits(job: Job) -> bool:
    """Whether the job's parents still have a say: they have none once it has run."""
    return job.state is JobState.QUEUED and job.attempt == 0 and bool(job.spec.after)


def verdict(job: Job, states: Mapping[str, JobState | None]) -> Verdict:
    """Whether `job` may run, given its parents' states."""
    return judge({parent: states.get(parent) for parent in job.spec.after})


def replay(inputs: Mapping[str, Any]) -> Verdict:
    """The verdict that these recorded inputs led to; older histories tell of the one parent that decided."""
    known = inputs["parents"] if "parents" in inputs else {inputs["parent"]: inputs.get("parent_state")}
    return judge({parent: JobState(state) if state else None for parent, state in known.items()})


def judge(states: dict[str, JobState | None]) -> Verdict:
    """The verdict over all parents, in the order in which they were named."""
    waiting: str | None = None
    for parent, state in states.items():
        if state is None or (state.terminal and state is not JobState.SUCCEEDED):
            return Verdict(answer="failed", parent=parent, state=state, states=states)
        if state is not JobState.SUCCEEDED:
            waiting = waiting or parent
    return Verdict(answer="waits" if waiting else "ready", parent=waiting, states=states)
