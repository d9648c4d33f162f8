"""What happened, newest first, each with its cause."""

import pandas as pd
import streamlit as st

from trackside.models import EventKind
from trackside_dashboard import live, queries, tables, text


@live.part()
def events() -> None:
    hub = live.hub()
    snapshot = hub.snapshot()
    kinds = st.session_state.get("kind") or []
    rows = queries.event_rows(snapshot.events, snapshot.jobs, hub.now_ms(), kinds=kinds)
    if not snapshot.events:
        if snapshot.version == 0:
            st.skeleton(height=200)
            return
        st.markdown("##### Nothing happened yet")
        st.markdown("The first event is a submission:")
        st.code("trackside submit examples/digits.py", language=None)
        return
    if not rows:
        st.markdown("No event of this kind among the newest. Clear the filter above.")
        return
    st.dataframe(
        pd.DataFrame(tables.timed(rows, "time", text.zone(live.browser_zone()))),
        key="events",
        hide_index=True,
        placeholder="",
        column_config=tables.EVENTS,
        height=min(34 * (len(rows) + 1) + 2, 760),
        row_height=34,
        alt="Events, newest first",
    )


st.pills(
    "Kind",
    [kind.value for kind in EventKind],
    selection_mode="multi",
    key="kind",
    label_visibility="collapsed",
    bind="query-params",
)
events()
