"""Text for terminals and pipes: tables, times, JSON, and nothing that a terminal would obey.

Names, messages and logs are written by programs that are not ours, so control characters, escape sequences and
characters that turn the reading direction are taken out before anything is printed for people.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# CSI, OSC/DCS/SOS/PM/APC up to their terminator, two-byte escapes, and the 8-bit forms of the same.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_PIPED_WIDTH: Final = 4000  # a row stays a line for grep and awk; rich pads nothing beyond the text
_STATE_STYLES: Final = {
    "running": "green", "succeeded": "bold green", "failed": "bold red", "cancelled": "yellow",
    "waiting": "magenta", "pausing": "cyan", "paused": "cyan", "cancelling": "yellow", "silent": "bold red",
    "ok": "green", "warn": "yellow", "fail": "bold red",
}  # fmt: skip


def plain(value: object) -> str:
    """One line of harmless text."""
    return " ".join(block(value).split())


def block(value: object) -> str:
    """Harmless text that keeps its lines and tabs; a carriage return starts a new line and overwrites nothing."""
    text = str(value).replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


def say(message: str) -> None:
    """A hint or warning for people, on stderr."""
    with suppress(OSError):  # a full disk behind it is no reason to end
        print(block(message), file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """One JSON document and a newline on stdout."""
    import orjson

    tty = sys.stdout.isatty()
    text = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if tty else 0)).decode()
    sys.stdout.write((_escaped(text) if tty else text) + "\n")


def print_json_line(document: Any) -> None:
    """One JSON document as a line, at once: for listings that go on."""
    import orjson

    text = orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS).decode()
    sys.stdout.write((_escaped(text) if sys.stdout.isatty() else text) + "\n")
    sys.stdout.flush()


def _escaped(document: str) -> str:
    """The same JSON with what a terminal might obey written as escapes; such characters stand in strings only."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", document)


def record(value: Any) -> Any:
    """A record of ours as plain JSON values, with the fields that are not known as null."""
    from dataclasses import fields, is_dataclass
    from enum import Enum

    if is_dataclass(value):
        return {field.name: record(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [record(item) for item in value]
    if isinstance(value, dict):
        return {str(key): record(item) for key, item in value.items()}
    return value


def console(*, markup: bool = False) -> Console:
    """Where tables go: coloured on a terminal, without colour and without wrapping in a pipe."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    return Console(
        file=sys.stdout, highlight=False, markup=markup, emoji=False, soft_wrap=False,
        width=None if tty else _PIPED_WIDTH, no_color=None if tty else True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table: its heading, and what becomes of it where the terminal is too narrow for the row."""

    title: str
    justify: Literal["left", "right"] = "left"
    note: bool = False  # goes to a line of its own under the row; the others keep theirs, so that ids stay whole


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """A table without borders; a cell that is None shows as a dash."""
    texts = [["-" if cell is None else plain(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _write_lines(columns, texts)
        return
    out = console()
    for padding in (2, 1):
        if _width(columns, texts, padding) <= out.width:
            _print_lines(out, table(columns, texts, padding=padding))
            return
    kept = [at for at, column in enumerate(columns) if not column.note]
    short = [columns[at] for at in kept]
    cut = [[row[at] for at in kept] for row in texts]
    if len(kept) == len(columns) or _width(short, cut, 1) > out.width:
        _print_lines(out, table(columns, texts, padding=1))  # cells are folded; nothing is cropped
        return
    notes = [[row[at] for at in range(len(row)) if at not in kept and row[at] != "-"] for row in texts]
    _print_lines(out, table(short, cut, padding=2 if _width(short, cut, 2) <= out.width else 1), notes)


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, padding: int = 2) -> Table:
    """The same as a rich table."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, padding, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(column.title, justify=column.justify, overflow="fold")
    for row in rows:
        texts = ["-" if cell is None else plain(cell) for cell in row]
        grid.add_row(*(Text(text, style=_STATE_STYLES.get(text, "")) for text in texts))
    return grid


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[int]:
    from rich.cells import cell_len

    cells = ((column.title, *(row[at] for row in rows)) for at, column in enumerate(columns))
    return [max(map(cell_len, texts)) for texts in cells]


def _width(columns: Sequence[Column], rows: Sequence[Sequence[str]], padding: int) -> int:
    return sum(_widths(columns, rows)) + padding * (len(columns) - 1)


def _write_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """The table for a pipe, a line a row however wide: 10,000 rows take rich 5 s and this 0.1 s."""
    from rich.cells import cell_len

    widths = _widths(columns, rows)
    for row in ([column.title for column in columns], *rows):
        blanks = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        cells = [
            gap + text if column.justify == "right" else text + gap
            for column, text, gap in zip(columns, row, blanks, strict=True)
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _print_lines(out: Console, grid: Table, notes: Sequence[Sequence[str]] | None = None) -> None:
    """Write a table's lines without the blanks at their ends, and under each row (one line each) its notes."""
    from rich.padding import Padding
    from rich.text import Text

    with out.capture() as drawn:
        out.print(grid, crop=False)
    for at, line in enumerate(drawn.get().splitlines()):
        sys.stdout.write(f"{line.rstrip()}\n")
        for note in notes[at - 1] if notes is not None and at > 0 else ():
            out.print(Padding(Text(note, style="dim"), (0, 0, 0, 4), expand=False))


def narrow() -> bool:
    """Whether the reader is a terminal with little room."""
    import shutil

    return sys.stdout.isatty() and shutil.get_terminal_size().columns < 110


def span(seconds: float | None) -> str:
    """A length of time in at most two units: 12s, 3m20s, 4h05m, 2d3h."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{seconds:.1f}s" if 0 < seconds < 10 else f"{whole}s"
    minutes, secs = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{secs:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h"


def age(then_ms: int | None, now_ms: int) -> str:
    """How long ago."""
    return "-" if then_ms is None else span((now_ms - then_ms) / 1000)


def when(at_ms: int | None) -> str:
    """A point in time for people, in their own time zone."""
    if at_ms is None:
        return "-"
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


def size(count: int | float | None) -> str:
    """Bytes for people."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(value: float | str | None) -> str:
    """A metric's value in few characters."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, int | float) else plain(value)


def progress(step: int | None, total: int | None) -> str:
    """step/total."""
    if step is None:
        return "-"
    return f"{step}/{total}" if total is not None else str(step)
