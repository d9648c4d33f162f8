"""What people type and what they see: durations, tables, text made harmless, and the canonical series."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trackside.cli import parse, program
from trackside.cli.exits import exit_code
from trackside.cli.live import eta_s
from trackside.cli.output import event_line
from trackside.cli.render import Column, block, plain, print_table, span
from trackside.errors import BusUnavailable, ConfigurationError, Fenced, InvalidJob, NotFound, TracksideError
from trackside.models import Batch, Event, EventKind
from trackside.series import Series, canonical


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5m", 90),
        ("250ms", 0.25),
        ("1d", 86400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse.duration_s(text, "--timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "-1", "1x", "1h 30", "1h30", "1e3", "nan", "0", "0s", "0.5ms", "0.00000001", "99999999999"]
)
def test_wrong_durations_name_the_option(text: str) -> None:
    with pytest.raises(InvalidJob, match="--timeout"):
        parse.duration_s(text, "--timeout")


@pytest.mark.parametrize(
    ("hostile", "harmless"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://x\x1b\\b", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\x1bPq\x1b\\b\x1b", "ab"),
        ("a\x1b(0b", "ab"),
        ("a\u202eb\u2066c\u200bd", "abcd"),
        ("a\x00\x08\x7fb", "ab"),
        ("[red]a[/red]", "[red]a[/red]"),
        ("a\nb\r\nc\td", "a b c d"),
        ("\ud800", ""),
    ],
)
def test_text_of_others_is_made_harmless(hostile: str, harmless: str) -> None:
    assert plain(hostile) == harmless


def test_a_carriage_return_overwrites_nothing() -> None:
    assert block("real\rfake\r\nnext") == "real\nfake\nnext"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0s"),
        (1.25, "1.2s"),
        (59.9, "59s"),
        (200, "3m20s"),
        (14700, "4h05m"),
        (183600, "2d3h"),
        (-5, "0s"),
    ],
)
def test_lengths_of_time(seconds: float | None, text: str) -> None:
    assert span(seconds) == text


def test_a_table_in_a_pipe_has_one_line_a_row_and_nothing_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column(title="ID"), Column(title="WHY", note=True)]
    print_table(columns, [("x" * 64, "why " * 2000), ("short", None)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("x" * 64 + "  why why")
    assert all(line == line.rstrip() for line in lines)
    assert lines[2].split() == ["short", "-"]


def test_errors_have_exit_codes() -> None:
    expected = {ConfigurationError: 2, InvalidJob: 2, NotFound: 2, BusUnavailable: 3, Fenced: 1, TracksideError: 1}
    assert {kind: exit_code(kind("x")) for kind in expected} == expected


def test_an_event_is_one_line_whatever_is_in_it() -> None:
    event = Event(
        kind=EventKind.NOTE, at_ms=0, job="a-1", attempt=2, cause="said\nso",
        data={"k": "v\x1b[2J w", "digest": "ab" * 32}
    )  # fmt: skip
    line = event_line(event, with_job=True)
    assert line.endswith('a-1 #2 note said so k="v w" digest=abababababab')
    assert "\n" not in line


def test_eta_is_not_known_without_a_speed() -> None:
    assert eta_s(50, 100, 10.0) == 5.0
    assert eta_s(150, 100, 10.0) == 0.0
    assert eta_s(50, 100, 0.0) is None
    assert eta_s(50, None, 1.0) is None
    assert eta_s(None, 100, 1.0) is None


def test_a_module_with_dynamic_names_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    return print\n")
    (tmp_path / "star.py").write_text("from os.path import *\n")
    (tmp_path / "alias.py").write_text("import json as run\n")
    for target in ("lazy:anything", "star:join", "alias:run"):
        assert program.find(target, None, tmp_path, ()).root == tmp_path
    with pytest.raises(InvalidJob, match="defines no 'other'"):
        program.find("alias:other", None, tmp_path, ())


def _batch(steps: tuple[int, ...], **series: tuple[float | str | None, ...]) -> Batch:
    return Batch(steps=steps, at_ms=tuple(range(len(steps))), series=series)


def test_each_step_has_the_value_of_the_highest_attempt() -> None:
    first = (1, _batch((1, 2, 3, 4), loss=(4.0, 3.0, 2.0, 1.0)))
    second = (2, _batch((3, 5), loss=(2.5, 0.5)))
    expected = {"loss": [(1, 4.0, 1), (2, 3.0, 1), (3, 2.5, 2), (4, 1.0, 1), (5, 0.5, 2)]}

    assert canonical([first, second]) == expected
    assert canonical([second, first]) == expected, "the order of arrival does not matter"
    assert canonical([first, second, first, second]) == expected, "nor does seeing a batch twice"


def test_gaps_are_left_out_and_the_last_value_of_a_step_counts() -> None:
    points = canonical([(1, _batch((1, 1, 2, 3), loss=(1.0, 2.0, None, "Infinity"), acc=(None, None, 0.5, None)))])
    assert points == {"loss": [(1, 2.0, 1), (3, math.inf, 1)], "acc": [(2, 0.5, 1)]}


def test_named_values_become_numbers() -> None:
    values = [value for _, value, _ in canonical([(1, _batch((1, 2, 3), x=("NaN", "-Infinity", 1)))])["x"]]
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, 1.0]


def test_a_growing_series_is_kept_up_to_date() -> None:
    series = Series()
    for step in range(1, 101):
        series.add(1, _batch((step,), loss=(float(step),)))
    series.add(1, Batch(total=500))
    assert len(series.points("loss")) == 100
    assert series.total == 500
    assert series.points("never") == []
