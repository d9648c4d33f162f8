"""Crash points are armed by one variable, and a wrong one stops the start."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from trackside.errors import ConfigurationError
from trackside_supervisor import crashpoints


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    crashpoints.arm(None)


@pytest.mark.parametrize("text", ["nowhere:1", "before look", "before look:0", "before look:x", "before look:1:burn"])
def test_a_point_that_is_none_is_refused_and_names_those_that_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match="before look"):
        crashpoints.arm(text)


def test_the_nth_pass_dies_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda _pid, signum: sent.append(signum))
    crashpoints.arm("before look:3")
    for _ in range(2):
        crashpoints.here("before look")
        crashpoints.here("after round")
    assert sent == []
    crashpoints.here("before look")
    assert sent == [signal.SIGKILL]


def test_every_point_has_one_name() -> None:
    assert len(set(crashpoints.POINTS)) == len(crashpoints.POINTS)
