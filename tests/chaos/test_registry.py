"""No fault of the list is left out without a word."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from chaos.faults import ALL, ELSEWHERE, HERE, NOT_DONE

TESTS = Path(__file__).resolve().parents[1]


def test_every_fault_of_the_list_is_done_somewhere_or_said_not_to_be() -> None:
    assert [fault for fault in ALL if fault not in HERE | ELSEWHERE.keys() | NOT_DONE.keys()] == []
    assert HERE.isdisjoint(NOT_DONE)
    assert ELSEWHERE.keys().isdisjoint(NOT_DONE)


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_what_is_tested_elsewhere_is_there(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, test = ELSEWHERE[fault]
    spec = importlib.util.spec_from_file_location(f"elsewhere_{fault}", TESTS / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their own module up
    spec.loader.exec_module(module)
    assert callable(getattr(module, test))
