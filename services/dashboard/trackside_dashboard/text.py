"""Words and numbers for people, and what makes hostile ones harmless.

Names, metrics' names, output and tracebacks come from whoever may submit a job. `plain` takes out what could steer a
terminal or turn text around; `md` also makes every character stand for itself where Markdown is drawn.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from trackside.models import JobState

_ESCAPES: Final = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # device strings
    r"|\x1b."  # two-character sequences
)
# Control characters but tab and newline; marks that reorder or hide text; line separators of other systems.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_COMMAND: Final = re.compile(r"[\w ./=-]+")
_PUNCTUATION: Final = re.compile(r"([!-/:-@\[-`{-~])")
_WORD_JOINER: Final = "\u2060"  # breaks `:name:`, which Streamlit turns into an icon even where it is escaped
UNKNOWN: Final = "\N{EN DASH}"

# Icon and colour of each state; the icon carries the meaning where colours do not.
STATES: Final[dict[JobState, tuple[str, str]]] = {
    JobState.QUEUED: ("○", "gray"),
    JobState.RUNNING: ("▶", "blue"),
    JobState.WAITING: ("◔", "orange"),
    JobState.PAUSING: ("◫", "violet"),
    JobState.PAUSED: ("◫", "violet"),
    JobState.CANCELLING: ("◌", "gray"),
    JobState.SUCCEEDED: ("✓", "green"),
    JobState.FAILED: ("✕", "red"),
    JobState.CANCELLED: ("⊘", "gray"),
}


def chip(state: JobState) -> str:
    """A state as icon and word."""
    return f"{STATES[state][0]} {state.value}"


def plain(raw: object, limit: int = 200) -> str:
    """One line of text without escape sequences, control characters or tricks with direction."""
    text = _UNSEEN.sub("", _ESCAPES.sub("", str(raw))).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def block(raw: str) -> str:
    """Output of a program as it would stand on a screen: colours gone, rewritten lines in their last form."""
    lines = _ESCAPES.sub("", raw.replace("\r\n", "\n")).split("\n")
    return "\n".join(_UNSEEN.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]) for line in lines)


def md(raw: object, limit: int = 200) -> str:
    """`plain`, with every character standing for itself in Markdown."""
    return _PUNCTUATION.sub(r"\\\1", plain(raw, limit)).replace("\\:", "\\:" + _WORD_JOINER)


def prose(raw: object, limit: int = 200) -> str:
    """`md` of a sentence of ours, with the commands that it names in backticks drawn as such."""
    parts = plain(raw, limit).split("`")
    if len(parts) % 2 == 0:
        return md(raw, limit)
    return "".join(
        f"`{part}`" if number % 2 and _COMMAND.fullmatch(part) else md(f"`{part}`" if number % 2 else part, limit)
        for number, part in enumerate(parts)
    )


def number(value: float | None, digits: int = 4) -> str:
    """A number in few characters; what is no number by its name."""
    if value is None:
        return UNKNOWN
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace(",", "\u202f")
    return f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """A whole number, thousands apart."""
    return UNKNOWN if value is None else f"{value:,}".replace(",", "\u202f")


def unit(value: float | None, name: str, digits: int = 0) -> str:
    """A measured value with its unit, or the sign for unknown."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}\u00a0{name}"


def span(seconds: float | None) -> str:
    """A duration by its two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    s = max(0.0, seconds)
    if s < 9.95:
        return f"{s:.1f} s"
    if s < 99.5:
        return f"{s:.0f} s"
    minutes = round(s / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def whole_span(seconds: float) -> str:
    """`span` without tenths, for what changes every second anyway."""
    return f"{max(0, int(seconds))} s" if seconds < 99.5 else span(seconds)


def ago(at_ms: int | None, now_ms: int) -> str:
    """How long ago, by one clock."""
    return UNKNOWN if at_ms is None else f"{whole_span((now_ms - at_ms) / 1000)} ago"


def size(byte_count: int | None) -> str:
    """Bytes in binary units."""
    if byte_count is None:
        return UNKNOWN
    value = float(byte_count)
    for name in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {name}" if name == "B" else f"{value:.1f} {name}"
        value /= 1024
    return f"{value:.1f} TiB"


def memory(mib: float | None) -> str:
    """Memory, given in MiB."""
    if mib is None or not math.isfinite(mib):
        return UNKNOWN
    return unit(mib, "MiB") if mib < 1000 else unit(mib / 1024, "GiB", 1)


def percent(fraction: float) -> str:
    """Rounded down, so that 100 % means all of it."""
    return f"{int(100 * fraction)}\u00a0%"


def zone(name: str | None) -> tzinfo:
    """A browser's time zone; UTC where it told none that is known here."""
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def clock(at_ms: int | None, tz: tzinfo, *, date: bool = False) -> str:
    """Wall time of day, with the date if asked."""
    if at_ms is None:
        return UNKNOWN
    return datetime.fromtimestamp(at_ms / 1000, tz).strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")
