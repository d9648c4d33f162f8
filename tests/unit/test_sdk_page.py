"""The control page is what two processes agree on, word by word."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from trackside.errors import ConfigurationError
from trackside.sdk.page import OUTCOMES, Command, ControlPage, End, Phase


def test_the_words_stand_where_the_contract_says(tmp_path: Path) -> None:
    path = tmp_path / "page"
    page = ControlPage.create(path)
    page.command = Command.PAUSE
    before_ns = time.monotonic_ns()
    page.boundary(7)
    page.total, page.first, page.phase, page.accepted = 100, 3, Phase.SAVING, 6
    page.saves = True
    page.signals()
    page.refuse(1, 28)
    page.end = End(outcome="diverged", bad_step=5, early=True)
    words = struct.unpack("17q", path.read_bytes())

    assert words[:6] == (0x545253, 2, 7, 100, 3, 2)
    assert words[8:] == (6, 1, 1, 1, 28, 7, 5, 1, 1)
    assert before_ns <= words[6] <= time.monotonic_ns()


def test_a_fresh_page_knows_nothing(tmp_path: Path) -> None:
    page = ControlPage.create(tmp_path / "page")
    assert (page.command, page.completed, page.total, page.first) == (Command.NONE, 0, None, None)
    assert (page.phase, page.boundary_ns, page.accepted) == (Phase.STARTING, None, None)


def test_a_refusal_is_of_what_was_asked_then_and_of_nothing_since() -> None:
    page = ControlPage.in_memory()
    page.command = Command.PAUSE
    seen = [page.refused]
    page.refuse(page.asks, 0)
    seen.append(page.refused)
    for command in (Command.NONE, Command.PAUSE):
        page.command = command
        seen.append(page.refused)
    assert seen == [None, 0, None, None]


def test_a_pause_is_heard_by_its_signal_and_any_other_stop_at_once() -> None:
    page = ControlPage.in_memory()
    seen = [page.heard]
    for command in (Command.PAUSE, Command.NONE, Command.PAUSE):
        page.command = command
        seen.append(page.heard)
        page.signals()
        seen.append(page.heard)
    page.refuse(page.asks, 0)
    seen.append(page.heard)
    page.command = Command.PREEMPT
    seen.append(page.heard)
    none, pause = Command.NONE, Command.PAUSE
    assert seen == [none, none, pause, none, none, none, pause, none, Command.PREEMPT]


def test_every_end_has_its_number_and_one_that_is_not_known_is_none(tmp_path: Path) -> None:
    page = ControlPage.create(tmp_path / "page")
    assert page.end is None
    for name in OUTCOMES:
        page.end = End(outcome=name)
        assert ControlPage.open(tmp_path / "page").end == End(outcome=name)
    raw = bytearray((tmp_path / "page").read_bytes())
    raw[13 * 8 : 14 * 8] = struct.pack("q", len(OUTCOMES) + 1)
    (tmp_path / "page").write_bytes(raw)
    assert ControlPage.open(tmp_path / "page").end is None


def test_both_sides_see_each_other(tmp_path: Path) -> None:
    worker = ControlPage.create(tmp_path / "page")
    attempt = ControlPage.open(tmp_path / "page")
    worker.command = Command.CANCEL
    attempt.boundary(5)
    assert (attempt.command, worker.completed) == (Command.CANCEL, 5)
    assert attempt.command.reason == "cancelled"


@pytest.mark.parametrize("content", [b"", b"x" * 63, bytes(64), b"y" * 64])
def test_what_is_no_page_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(ConfigurationError, match="control page"):
        ControlPage.open(tmp_path / "page")


def test_an_unknown_command_stops_without_losing_anything(tmp_path: Path) -> None:
    ControlPage.create(tmp_path / "page")
    raw = bytearray((tmp_path / "page").read_bytes())
    raw[8:16] = struct.pack("q", 99)
    (tmp_path / "page").write_bytes(raw)
    assert ControlPage.open(tmp_path / "page").command is Command.PREEMPT
