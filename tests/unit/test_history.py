"""Histories that were ever written read, fold and replay with today's code: one file for each shape they had.

A file is added when events change; none is ever changed or removed.
"""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from trackside.codec import decode
from trackside.models import Event, EventKind, JobState
from trackside.story import RULES
from trackside_supervisor.replay import differs, replay

HISTORIES = sorted((Path(__file__).resolve().parents[1] / "data").glob("history-*.jsonl"))


def events(path: Path, **more: object) -> list[Event]:
    return [decode(Event, orjson.dumps({**orjson.loads(line), **more})) for line in path.read_bytes().splitlines()]


def test_there_is_a_history() -> None:
    assert HISTORIES


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_history_folds_to_terminal_states_by_legal_moves(path: Path) -> None:
    states: dict[str, JobState] = {}
    for event in events(path, a_field_of_later_versions=1):
        if event.job is None or event.new is None:
            continue
        before = states.get(event.job)
        assert event.old is before
        assert before is None or before.may_become(event.new)
        states[event.job] = event.new
    assert len(states) > 3
    assert all(state.terminal for state in states.values())


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_every_recorded_decision_is_made_again_from_its_inputs(path: Path) -> None:
    told = events(path, a_field_of_later_versions=1)
    decided = [event for event in told if replay(event) is not None]
    assert [differs(event) for event in decided if differs(event) is not None] == []
    rules = {event.data.get("rule", event.cause) for event in decided if event.kind is not EventKind.SLOT}
    assert rules <= set(RULES)
    assert len(rules) >= 5, "a history that shows little proves little"


@pytest.mark.parametrize("path", HISTORIES[1:], ids=lambda path: path.stem)
def test_every_decision_of_a_later_history_tells_its_inputs(path: Path) -> None:
    told = events(path)
    assert [differs(event) for event in told if differs(event) is not None] == []
    made = {event.kind for event in told if replay(event) is not None}
    assert made == {EventKind.TRANSITION, EventKind.ASSIGNED, EventKind.ENDED, EventKind.SLOT, EventKind.NOTE}
