"""Words for people, and hostile ones made harmless."""

from __future__ import annotations

import math
import re
import string
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackside.models import JobState
from trackside_dashboard import text


@given(st.text())
def test_no_text_keeps_control_characters_or_more_than_its_limit(raw: str) -> None:
    shown = text.plain(raw, 50)
    assert len(shown) <= 50
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u200b\ufeff" for c in shown)


@given(st.text())
def test_every_sign_of_markdown_is_escaped(raw: str) -> None:
    shown = text.md(raw)
    at = 0
    while at < len(shown):
        if shown[at] == "\\":
            assert shown[at + 1] in string.punctuation
            at += 2
        else:
            assert shown[at] not in string.punctuation
            at += 1


def test_icons_cannot_be_forged() -> None:
    assert ":material" not in text.md(":material/check:").replace("\\", "")
    assert ":red[" not in text.md(":red[x]").replace("\\", "")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("\x9b31mx", "31mx"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("two\nlines\tand", "two lines and"),
    ],
)
def test_escapes_are_taken_out(raw: str, shown: str) -> None:
    assert text.plain(raw) == shown


def test_output_is_shown_as_a_screen_would() -> None:
    assert text.block(" 10%|#\r 50%|##\r100%|###\ndone\r\nnext") == "100%|###\ndone\nnext"
    assert text.block("\x1b[1mbold\x1b[0m\n  kept") == "bold\n  kept"


@given(st.text())
def test_a_sentence_shows_nothing_but_commands_as_code(raw: str) -> None:
    parts = re.sub(r"\\.", "", text.prose(raw)).split("`")  # what is escaped stands for itself
    assert len(parts) % 2 == 1
    assert all(re.fullmatch(r"[\w ./=-]+", code) for code in parts[1::2])
    assert not set("".join(parts[::2])) & set(string.punctuation)


def test_commands_in_a_sentence_are_drawn_as_such() -> None:
    assert text.prose("it rests: `trackside slots --json` says") == "it rests\\:\u2060 `trackside slots --json` says"
    assert text.prose("`**x**` and `") == text.md("`**x**` and `")
    assert "`<b>`" not in text.prose("`<b>`")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, text.UNKNOWN),
        (math.nan, text.UNKNOWN),
        (-3, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (61, "61 s"),
        (180, "3 min"),
        (7500, "2 h 05 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_spans(seconds: float | None, shown: str) -> None:
    assert text.span(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, text.UNKNOWN),
        (math.nan, "NaN"),
        (-math.inf, "-∞"),
        (0.123456, "0.1235"),
        (12000, "12\u202f000"),
        (3e-7, "3e-07"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


def test_only_all_of_it_is_a_hundred_per_cent() -> None:
    assert text.percent(0.9999) == "99\u00a0%"
    assert text.percent(1.0) == "100\u00a0%"


def test_times_are_in_the_viewers_zone() -> None:
    assert text.clock(0, text.zone("Europe/Berlin")) == "01:00:00"
    assert text.zone("No/Such") is UTC
    assert text.zone("../../etc/passwd") is UTC
    assert text.zone(None) is UTC


def test_memory_and_sizes() -> None:
    assert text.memory(412) == "412\u00a0MiB"
    assert text.memory(24_564) == "24.0\u00a0GiB"
    assert text.memory(None) == text.UNKNOWN
    assert text.size(4_718_592) == "4.5 MiB"


def test_each_state_has_an_icon_and_a_word() -> None:
    for state in JobState:
        assert text.chip(state).endswith(state.value)
        assert len(text.chip(state)) > len(state.value)
