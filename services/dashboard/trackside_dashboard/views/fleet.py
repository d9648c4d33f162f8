"""Every slot, and the fleet in a few numbers."""

import math
from typing import Any

import streamlit as st

from trackside.models import Job
from trackside_dashboard import live, queries, text

COLOURS = {
    "busy": "blue", "idle": "green", "silent": "red", "cordoned": "orange", "resting": "orange", "blocked": "red",
    "stopping": "gray",
}  # fmt: skip
ICONS = {
    "busy": "▶", "idle": "○", "silent": "✕", "cordoned": "◫", "resting": "◔", "blocked": "⊘", "stopping": "◌",
}  # fmt: skip
SPARK_POINTS = 60


@live.part()
def fleet() -> None:
    hub = live.hub()
    snapshot, now_ms = hub.snapshot(), hub.now_ms()
    facts = queries.summary(snapshot)
    with st.grid(5, min_column_width=130):
        st.metric("Running", facts.running, border=True, height="stretch")
        later = f"{facts.waiting} waiting to retry" if facts.waiting else None
        st.metric(
            "Queued", facts.queued, border=True, height="stretch", delta=later, delta_color="off", delta_arrow="off"
        )
        st.metric("Succeeded · 24 h", facts.succeeded_day, border=True, height="stretch")
        st.metric("Failed · 24 h", facts.failed_day, border=True, height="stretch")
        silent = f"{facts.silent} silent" if facts.silent else None
        st.metric(
            "Slots busy",
            f"{facts.busy} / {facts.slots}",
            border=True,
            height="stretch",
            delta=silent,
            delta_color="inverse",
            delta_arrow="off",
        )
    if not snapshot.slots:
        empty(snapshot.version == 0)
        return
    with st.grid("auto", min_column_width=320):
        for tile in queries.tiles(snapshot, now_ms):
            with st.container(border=True, key=f"slot-{tile.slot.id}", gap="xsmall", height="stretch"):
                draw(tile)


def empty(unread: bool) -> None:
    if unread:
        st.skeleton(height=160)
        return
    st.markdown("##### No slot is registered")
    st.markdown("A trainer offers this machine's GPUs, or a share of its CPU. `trackside up` starts one, or alone:")
    st.code("trackside trainer", language=None)


def draw(tile: queries.Tile) -> None:
    slot = tile.slot
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.markdown(f"**{text.md(slot.id, 40)}**", width="content")
        with st.container(horizontal=True, width="content", gap="xsmall"):
            if slot.cordoned and tile.state != "cordoned":
                st.badge("cordoned", color="orange")
            if slot.throttled is not None:
                st.badge("slow", color="orange")
            st.badge(f"{ICONS[tile.state]} {tile.state}", color=COLOURS[tile.state])  # type: ignore[arg-type]  # names of the theme
    device = slot.gpu_name or "GPU" if slot.kind == "gpu" else f"CPU, {slot.threads} threads"
    memory = f", {slot.gpu_memory_mib / 1024:.0f} GiB" if slot.gpu_memory_mib else ""
    st.caption(f"{text.md(slot.host, 40)} · {text.md(device, 60)}{memory}")
    if tile.why is not None:
        st.markdown(f":small[:orange[{text.md(tile.why, 300)}]]")
    if tile.job is None:
        st.caption("no job")
    else:
        job_part(tile, tile.job)
    numbers(tile)


def job_part(tile: queries.Tile, job: Job) -> None:
    label = f"{text.md(job.name, 48)} · attempt {tile.attempt}"
    st.page_link("views/job.py", label=label, icon=":material/show_chart:", query_params={"job": job.id})
    at = tile.progress
    st.progress(at.fraction or 0.0, text=at.line)


def numbers(tile: queries.Tile) -> None:
    gpu = tile.slot.kind == "gpu"
    trace = [value if value is not None else math.nan for value in tile.trace.load_pct[-SPARK_POINTS:]]
    words: Any = st
    if tile.load_pct is not None:
        left, words = st.columns([5, 6], vertical_alignment="top", wrap=False)
        chart = trace if len(trace) > 1 else None
        left.metric("GPU" if gpu else "CPU", text.unit(tile.load_pct, "%"), chart_data=chart, chart_type="area")
    lines = []
    if tile.progress.steps_per_s is not None:
        lines.append(f"**{text.number(tile.progress.steps_per_s, 3)}** steps/s")
    if tile.memory_mib is not None:
        lines.append(f"**{text.memory(tile.memory_mib)}** {'on the GPU' if gpu else 'memory'}")
    if tile.temperature_c is not None:
        lines.append(f"**{text.unit(tile.temperature_c, '°C')}**")
    if tile.job is not None:
        ago = tile.progress.last_step_s
        lines.append(f"last step **{text.UNKNOWN}**" if ago is None else f"last step **{text.whole_span(ago)}** ago")
    if tile.beat_age_s is not None:
        lines.append(f"beat **{text.span(tile.beat_age_s)}** ago")
    elif tile.silent_s is not None:
        lines.append(f":red[**silent for {text.whole_span(tile.silent_s)}**]")
    else:
        lines.append(":red[**never heard**]")
    words.markdown("  \n".join(f":small[{line}]" for line in lines))


fleet()
