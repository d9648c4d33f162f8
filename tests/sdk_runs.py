"""A run as its training script sees it, made in the process of the test, and what it has told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attempts
from trackside.sdk.page import ControlPage
from trackside.sdk.run import Run

MakeRun = Callable[..., Run]


def records(run: Run, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of its journal, or those of one kind."""
    return attempts.records(run.dir.parent / "journal.jsonl", kind)


def page_of(run: Run) -> ControlPage:
    return ControlPage.open(run.dir.parent / "page")


class Slow:
    """A number on a GPU that has not arrived yet, as `values.Arriving` is."""

    def __init__(self, value: float) -> None:
        self.value, self.arrived = value, False

    def here(self) -> bool:
        return self.arrived

    def get(self) -> float:
        return self.value
