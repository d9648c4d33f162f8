"""What a rule is, and what the oracle says: the promises that were broken, and those that nothing was seen of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from trackside.oracle.history import History, JobHistory

INVARIANTS: Final = tuple(f"I{number}" for number in range(1, 20))


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """A broken promise: which, of which job, and the facts."""

    invariant: str
    job: str | None
    what: str
    rule: str | None = None  # the name of the oracle's; None: somebody else saw it

    def __str__(self) -> str:
        return f"{self.invariant} {self.job or ''}: {self.what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRule:
    """A rule about one job at a time. `sees`: whether there is anything that it could find broken."""

    invariant: str
    name: str
    sees: Callable[[JobHistory, History], bool]
    broken: Callable[[JobHistory, History], Iterator[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemRule:
    """A rule about the whole system."""

    invariant: str
    name: str
    sees: Callable[[History], bool]
    broken: Callable[[History], Iterator[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The oracle's word on a history. A rule is named by its invariant and its own name."""

    violations: tuple[Violation, ...]
    judged: tuple[str, ...]
    not_judged: tuple[str, ...]  # nothing was seen that these could find broken

    @property
    def held(self) -> bool:
        return not self.violations


def order(name: str) -> tuple[int, str]:
    """Sorts rules by their invariant's number."""
    invariant, _, rest = name.partition(" ")
    return int(invariant[1:]), rest
