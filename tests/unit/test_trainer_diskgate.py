"""A slot whose disk failed takes nothing until there is room, each time for more."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from trackside.testing import wait_until
from trackside_trainer.diskgate import DiskGate

FULL = OSError(errno.ENOSPC, "No space left on device", "/somewhere")


def test_a_gate_is_open_until_a_disk_fails_and_opens_once_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    gate = DiskGate([folder])
    assert gate.passes()
    gate.close(FULL)
    assert not gate.passes(), "it looks again at once"
    words = [gate.words]
    wait_until(gate.passes, 5, "it stays closed")
    words.append(gate.words)
    assert words == ["its host's disk takes nothing (No space left on device): free space on its disk", None]
    assert list(folder.iterdir()) == [], "the look has left something"


def test_a_gate_stays_closed_while_one_of_the_disks_fails_and_says_which_way(tmp_path: Path) -> None:
    broken = tmp_path / "a file"
    broken.touch()
    gate = DiskGate([tmp_path, broken])
    gate.close(FULL)
    wait_until(lambda: not gate.passes() and "File exists" in (gate.words or ""), 5, "it did not look")
    broken.unlink()
    wait_until(gate.passes, 5, "it stays closed")


def test_room_for_twice_as_much_is_asked_for_each_time_until_an_attempt_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, start, size: asked.append(size))
    gate = DiskGate([tmp_path])
    for held in (False, False, True, False):
        if held:
            gate.held()
        gate.close(FULL)
        wait_until(gate.passes, 5, "it stays closed")
    assert asked == [1 << 20, 2 << 20, 1 << 20, 2 << 20]
