"""The protocol's page names every key, field, state and reason that the code has."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from trackside import models
from trackside.bus import keys

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
WORDS = set(re.findall(r"`([^`\n]+)`", PAGE))


def test_the_page_has_every_key_of_the_code_and_no_other() -> None:
    assert keys.__doc__ is not None
    in_code = set(re.findall(r"^ *(ts:\S+) ", keys.__doc__, re.MULTILINE))
    on_page = set(re.findall(r"^\| `(ts:[^`]+)` \|", PAGE, re.MULTILINE))
    assert in_code == on_page
    assert len(in_code) > 10


RECORDS = [
    *(models.Job, models.JobSpec, models.Attempt, models.Outcome, models.CheckpointRef),
    *(models.Slot, models.Breaker, models.Beat, models.Event, models.Batch),
]


@pytest.mark.parametrize("record", RECORDS)
def test_the_page_names_every_field(record: type[models.Job]) -> None:
    assert {field.name for field in fields(record)} - WORDS == set()


@pytest.mark.parametrize("values", [models.JobState, models.Reason, models.EventKind])
def test_the_page_names_every_state_reason_and_kind(values: type[models.JobState]) -> None:
    assert {value.value for value in values} - WORDS == set()


def test_every_key_function_gives_a_key_of_the_table() -> None:
    assert keys.__doc__ is not None
    stems = set(re.findall(r"^ *(ts:[a-z:]+)", keys.__doc__, re.MULTILINE))
    made = []
    for name, function in inspect.getmembers(keys, inspect.isfunction):
        if name in ("deadline_member", "slot_queue", "entry_id", "parse_entry_id"):
            continue
        arguments = ["x" if p.annotation != "int" else 1 for p in inspect.signature(function).parameters.values()]
        made.append(function(*arguments))
    assert made
    for key in made:
        assert any(key.startswith(stem) for stem in stems), key
