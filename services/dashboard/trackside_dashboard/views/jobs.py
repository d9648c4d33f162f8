"""All jobs in one table; a click opens one."""

from typing import Any

import pandas as pd
import streamlit as st

from trackside.models import JobState
from trackside_dashboard import live, queries, text

COLUMNS = {
    "state": st.column_config.MultiselectColumn(
        "State", options=[text.chip(s) for s in JobState], color=[text.STATES[s][1] for s in JobState], width=120
    ),
    "name": st.column_config.TextColumn("Name", width=160),
    "progress": st.column_config.ProgressColumn("Progress", min_value=0, max_value=100, format="%d %%", width=115),
    "step": st.column_config.TextColumn("Step", width=105, alignment="right"),
    "left": st.column_config.TextColumn("Left", width=65, alignment="right", help="Estimated from the present speed"),
    "attempt": st.column_config.TextColumn("Att.", width=50, help="Which attempt it is", alignment="right"),
    "metrics": st.column_config.TextColumn("Last metrics", width=200),
    "why": st.column_config.TextColumn("Why", width=250),
    "slot": st.column_config.TextColumn("Slot", width=100),
    "since": st.column_config.TextColumn("In state", width=85, alignment="right"),
    "submitted": st.column_config.TextColumn("Submitted", width=90, alignment="right"),
    "id": st.column_config.TextColumn("Id", width=170),
}


@live.part()
def jobs() -> None:
    hub = live.hub()
    snapshot = hub.snapshot()
    states = st.session_state.get("state") or []
    needle = st.session_state.get("q") or ""
    found = queries.matching(snapshot, states=states, needle=needle)
    rows = queries.job_rows(snapshot, found, hub.now_ms())
    if not snapshot.jobs:
        empty(snapshot.version == 0)
        return
    shown = f"{len(found)} of {snapshot.total_jobs} jobs" if states or needle else f"{snapshot.total_jobs} jobs"
    if len(found) > len(rows):
        shown += f" · {len(rows)} are shown; filter to find the others"
    if snapshot.total_jobs > len(snapshot.jobs):
        shown += f" · the newest {len(snapshot.jobs)} are listed; `trackside ls` lists all"
    st.caption(shown)
    if not rows:
        st.markdown("No job matches. Clear the filter above.")
        return
    event: Any = st.dataframe(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        key="table",
        column_config=COLUMNS,
        hide_index=True,
        placeholder="",
        on_select="rerun",
        selection_mode="single-cell",
        height=min(38 * (len(rows) + 1) + 4, 720),
        row_height=38,
        alt="The jobs, newest first",
    )
    cells = event.selection.cells
    if cells and cells[0][0] < len(rows):
        st.session_state["open_job"] = rows[cells[0][0]]["id"]
        st.rerun(scope="app")


def empty(unread: bool) -> None:
    if unread:
        st.skeleton(height=240)
        return
    st.markdown("##### No job yet")
    st.markdown("Submit one; it appears here at once:")
    st.code("trackside submit examples/digits.py", language=None)


chosen = st.session_state.pop("open_job", None)
if chosen is not None:
    st.switch_page("views/job.py", query_params={"job": chosen})
with st.container(horizontal=True, vertical_alignment="bottom"):
    st.pills(
        "State",
        [s.value for s in JobState],
        selection_mode="multi",
        key="state",
        label_visibility="collapsed",
        bind="query-params",
    )
    st.text_input(
        "Filter",
        key="q",
        placeholder="Name, id, slot, reason …",
        label_visibility="collapsed",
        bind="query-params",
        icon=":material/search:",
        width=280,
        max_chars=100,
    )
jobs()
