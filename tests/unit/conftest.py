"""Fixtures for the tests of the SDK: a run in this process, and attempts in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attempts import Attempts, context
from sdk_runs import MakeRun
from trackside.sdk.context import ResumePoint
from trackside.sdk.page import ControlPage
from trackside.sdk.run import Run, set_current


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    monkeypatch.setattr("trackside.sdk.checkpointer._PATIENCE_S", 30.0)  # a slow disk leaves no checkpoint out

    def make(attempt: int = 1, resume: tuple[ResumePoint, ...] | None = None) -> Run:
        folder = tmp_path / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        ControlPage.create(folder / "page")
        run = Run.of_attempt(context(folder, attempt, root=tmp_path, params={"lr": 0.1}, resume=resume))
        set_current(run)
        return run

    yield make
    set_current(None)


@pytest.fixture
def attempts(tmp_path: Path) -> Iterator[Attempts]:
    made = Attempts(tmp_path)
    yield made
    for attempt in made.made:
        if attempt.process is not None and attempt.process.poll() is None:
            attempt.process.kill()
            attempt.process.communicate()
