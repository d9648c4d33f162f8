"""Tables that stand on more than one page."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any, Final

import streamlit as st

from trackside_dashboard import text

EVENTS: Final[dict[str, Any]] = {
    "time": st.column_config.TextColumn("Time", width=150),
    "ago": st.column_config.TextColumn("", width=85, alignment="right"),
    "kind": st.column_config.TextColumn("Kind", width=90),
    "job": st.column_config.TextColumn("Job", width=150),
    "what": st.column_config.TextColumn("What", width=230),
    "cause": st.column_config.TextColumn("Cause", width=160),
    "detail": st.column_config.TextColumn("Detail", width=300),
    "by": st.column_config.TextColumn("By", width=140),
    "id": None,
}
ATTEMPTS: Final[dict[str, Any]] = {
    "attempt": st.column_config.NumberColumn("Attempt", width=70),
    "state": st.column_config.TextColumn("State", width=80),
    "reason": st.column_config.TextColumn("Ended by", width=100),
    "end": st.column_config.TextColumn("How", width=260),
    "slot": st.column_config.TextColumn("Slot", width=110),
    "started": st.column_config.TextColumn("Started", width=150),
    "ran": st.column_config.TextColumn("Ran", width=90, alignment="right"),
    "steps": st.column_config.TextColumn("Steps", width=130, alignment="right"),
    "resumed": st.column_config.TextColumn("Resumed from", width=110, alignment="right"),
    "pid": st.column_config.NumberColumn("PID", format="%d", width=80),
    "noticed": st.column_config.TextColumn("Noticed after", width=110, alignment="right"),
}


def timed(rows: list[dict[str, object]], column: str, tz: tzinfo) -> list[dict[str, object]]:
    """`rows` with a time in milliseconds turned into the viewer's wall time."""
    return [{**row, column: text.clock(_int(row[column]), tz, date=True)} for row in rows]


def _int(value: object) -> int | None:
    return value if isinstance(value, int) else None
