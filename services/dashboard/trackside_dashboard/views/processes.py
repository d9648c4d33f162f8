"""Every process of the system by its sign of life."""

import pandas as pd
import streamlit as st

from trackside_dashboard import live, queries

COLUMNS = {
    "state": st.column_config.MultiselectColumn(
        "State", options=["✓ beating", "✕ silent"], color=["green", "red"], width=110
    ),
    "role": st.column_config.TextColumn("Role", width=100),
    "name": st.column_config.TextColumn("Name", width=200),
    "host": st.column_config.TextColumn("Host", width=140),
    "pid": st.column_config.NumberColumn("PID", format="%d", width=90),
    "beat": st.column_config.TextColumn("Last beat", width=120, alignment="right"),
    "step": st.column_config.TextColumn(
        "Last step", width=120, alignment="right", help="Of the attempt's training loop"
    ),
    "up": st.column_config.TextColumn("Up for", width=110, alignment="right"),
    "doing": st.column_config.TextColumn("Doing", width=320),
}


@live.part()
def processes() -> None:
    hub = live.hub()
    snapshot = hub.snapshot()
    rows = queries.process_rows(snapshot, hub.now_ms())
    if not rows:
        if snapshot.version == 0:
            st.skeleton(height=200)
            return
        st.markdown("##### Nothing beats")
        st.markdown("No supervisor, agent or worker has reported to this server. Start them all with:")
        st.code("trackside up", language=None)
        return
    silent = sum(beat is None for beat in snapshot.beats.values())
    st.caption(
        f"{len(rows)} processes" + (f" · {silent} silent: killed, frozen, or cut off from the server" * bool(silent))
    )
    st.dataframe(
        pd.DataFrame(rows),
        key="processes",
        column_config=COLUMNS,
        hide_index=True,
        placeholder="",
        row_height=36,
        height=min(36 * (len(rows) + 1) + 2, 720),
        alt="Every process and its last sign of life",
    )
    health = hub.health()
    if health.faults:
        st.caption(f"This page's reader failed {health.faults} times and went on.")


processes()
