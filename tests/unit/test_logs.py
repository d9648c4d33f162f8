"""Logging never fails for what it is written to."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest
import structlog

from trackside import logs
from trackside.config import Settings


@pytest.fixture(autouse=True)
def _afterwards_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def stream(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(path, "w"), line_buffering=True)  # unbuffered: no line waits for the end


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_full_disk_takes_no_line_and_ends_nobody(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    full = stream("/dev/full")
    monkeypatch.setattr(sys, "stderr", full)
    logs.configure(Settings.from_environ({"TRACKSIDE_LOG_FORMAT": form}), role="test")
    logs.get().error("something", number=1)
    try:
        1 / 0  # noqa: B018 -- for its exception
    except ZeroDivisionError:
        logs.get().exception("something_else")
    with pytest.raises(OSError, match="No space left"):
        full.write("a line\n")
    full.close()


def test_a_stream_that_is_closed_takes_no_line_either(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = stream("/dev/null")
    monkeypatch.setattr(sys, "stderr", gone)
    logs.configure(Settings.from_environ({"TRACKSIDE_LOG_FORMAT": "json"}), role="test")
    gone.close()
    logs.get().error("something")


def test_lines_that_are_taken_are_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Settings.from_environ({"TRACKSIDE_LOG_FORMAT": "json"}), role="test")
    logs.get().error("something", number=1)
    assert '"number": 1' in capsys.readouterr().err
