"""One job: why it is where it is, its curves, attempts, output and history."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from trackside import line, wording
from trackside.errors import InvalidJob
from trackside.ids import check_job_id
from trackside.models import Job, JobState
from trackside_dashboard import charts, life, live, queries, tables, text
from trackside_dashboard.hub import SERIES_MAX
from trackside_dashboard.snapshot import JobView

CHARTS_MAX = 12
_EVIDENCE_CHARS = 12_000  # a traceback's end says more than its beginning


def chosen() -> str | None:
    try:
        return check_job_id(st.query_params.get("job", ""))
    except InvalidJob:
        return None


def found(job_id: str) -> tuple[Job, JobView] | None:
    view = live.hub().view(job_id)
    job = live.hub().snapshot().jobs.get(job_id)
    return (job, view) if job is not None and view is not None else None


def missing(job_id: str | None) -> None:
    hub = live.hub()
    if job_id in hub.snapshot().jobs:
        st.markdown(f":gray[This job is still being read; at most {SERIES_MAX} are at once.]")
        st.skeleton(height=240)
        return
    if hub.health().state == "none":
        st.skeleton(height=240)
        return
    st.markdown("##### No such job" if job_id else "##### No job chosen")
    st.markdown("The list has them all:")
    st.page_link("views/jobs.py", label="Jobs", icon=":material/list:")


@live.part()
def header(job_id: str) -> None:
    hub = live.hub()
    both = found(job_id)
    if both is None:
        missing(job_id)
        return
    job, view = both
    now_ms = hub.now_ms()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"# {text.md(job.name, 80)}", width="content")
        st.badge(text.chip(job.state), color=text.STATES[job.state][1])  # type: ignore[arg-type]  # names of the theme
    reason = queries.why(job, now_ms, line.places(hub.snapshot().jobs.values()).get(job.id))
    spent = text.whole_span((now_ms - (job.ended_at_ms or job.changed_at_ms)) / 1000)
    since = f"{job.state.value} {spent} ago" if job.state.terminal else f"{job.state.value} for {spent}"
    st.markdown(f"{text.md(reason, 400) + ' · ' if reason else ''}:gray[{since}]")
    at = queries.progress(hub.snapshot(), job, now_ms)
    if at.step is not None:
        st.progress(at.fraction or 0.0, text=at.line)
    ran_ms = job.ran_ms + sum(now_ms - a.started_at_ms for a in view.attempts if a.started_at_ms and not a.ended_at_ms)
    saved = f"step {text.count(job.checkpoints[0].step)}" if job.checkpoints else "none"
    with st.grid(5, min_column_width=130):
        used = f"{min(job.failures, job.spec.retries)} of {job.spec.retries} retries used" if job.failures else None
        st.metric(
            "Attempt",
            job.attempt,
            border=True,
            height="stretch",
            delta=used,
            delta_color="off",
            delta_arrow="off",
            help="A newer checkpoint gives the retries back.",
        )
        st.metric(
            "Speed",
            f"{text.number(at.steps_per_s, 3)} /s" if at.steps_per_s is not None else text.UNKNOWN,
            border=True,
            height="stretch",
            delta=f"last step {text.whole_span(at.last_step_s)} ago" if at.last_step_s is not None else None,
            delta_color="off",
            delta_arrow="off",
        )
        st.metric("Running time", text.span(ran_ms / 1000), border=True, height="stretch")
        st.metric("Checkpoint", saved, border=True, height="stretch")
        st.metric("Slot", text.plain(job.slot or text.UNKNOWN, 40), border=True, height="stretch")
    bad = life.bad_end(view)
    if bad is not None and bad[1]:
        attempt, told = bad
        ended = attempt.outcome.reason.value.replace("_", " ") if attempt.outcome is not None else ""
        failed = job.state is JobState.FAILED
        with st.expander(f"Attempt {attempt.number} ended: {ended}", icon=":material/error:", expanded=failed):
            st.code(told[-_EVIDENCE_CHARS:], language=None, wrap_lines=True)


@live.part()
def curves(job_id: str) -> None:
    both = found(job_id)
    if both is None:
        return
    job, view = both
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("### Metrics", width="content")
        axis = st.segmented_control(
            "Axis",
            ["step", "time"],
            default="step",
            required=True,
            key="axis",
            label_visibility="collapsed",
            bind="query-params",
        )
        log = st.toggle("log scale", key="log", bind="query-params")
        needle = ""
        if len(view.lines) > 6:
            needle = st.text_input(
                "Metric", key="metric", placeholder="Metric …", label_visibility="collapsed", width=200, max_chars=60
            )
    results(view)
    names = [name for name in view.lines if (needle or "").lower() in name.lower()]
    if not names:
        st.caption("No metric yet. The script writes them with `run.log(loss=…)`.")
        return
    draw(job, view, names[:CHARTS_MAX], "time" if axis == "time" else "step", log)
    if len(names) > CHARTS_MAX:
        st.caption(f"{CHARTS_MAX} of {len(names)} metrics; type part of a name to see others.")
    if view.left_out:
        st.caption(
            f"{view.left_out} values of further metrics are not kept here; `trackside metrics {job.id}` has them."
        )
    if not view.complete:
        st.caption("Older points are still being read.")


def results(view: JobView) -> None:
    """What the script has told of the run as a whole."""
    if not view.summary:
        return
    rows = [
        {
            "Summary": text.plain(name, 60),
            "Value": text.number(value) if isinstance(value, float) else text.plain(value, 400),
        }
        for name, value in sorted(view.summary.items())
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="", key="summary", alt="The run's summary")


def draw(job: Job, view: JobView, names: list[str], axis: charts.Axis, log: bool) -> None:
    restarts = life.restarts(view.attempts)
    with st.grid(3, min_column_width=340):
        for number, name in enumerate(names):
            line = view.lines[name]
            version = (len(line), int(line.at_ms[-1]))
            frame = live.hub().memo(("points", job.id, name, axis), version, partial(charts.arrow, line, axis))
            odd = live.hub().memo(("odd", job.id, name), version, partial(charts.odd_count, line))
            with st.container(border=True, gap="xsmall", height="stretch"):
                with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
                    st.markdown(f"**{text.md(name, 60)}**", width="content")
                    newest = float(line.values[-1]) if len(line) else None
                    st.markdown(f"**{text.number(newest)}**", width="content")
                st.vega_lite_chart(
                    frame,
                    charts.curve(restarts, axis, log=log),
                    key=f"chart-{number}-{axis}-{log}",
                    alt=f"Curve of {text.plain(name, 60)}",
                )
                if odd:
                    st.caption(f":red[▲ {odd} {'value is' if odd == 1 else 'values are'} no number]")
                if line.thinned:
                    st.caption(f"Thinned, as it is long; `trackside metrics --csv {job.id}` has every step.")


@live.part(2 * live.REFRESH_S)
def details(job_id: str) -> None:
    both = found(job_id)
    if both is None:
        return
    job, view = both
    now_ms = live.hub().now_ms()
    tz = text.zone(live.browser_zone())
    output, why, attempts, events, checkpoints, submission = st.tabs(
        [
            "Output",
            "Why",
            f"Attempts ({len(view.attempts)})",
            f"Events ({len(view.history)})",
            f"Checkpoints ({len(job.checkpoints)})",
            "Submission",
        ],
        key="details",
    )
    with output:
        tail(job)
    with why:
        story(job, view, now_ms)
    with attempts:
        rows = life.attempt_rows(view, now_ms)
        if rows:
            frame = pd.DataFrame(tables.timed(rows, "started", tz))
            st.dataframe(
                frame,
                column_config=tables.ATTEMPTS,
                hide_index=True,
                placeholder="",
                key="attempts",
                alt="Attempts, newest first",
            )
        else:
            st.caption("No attempt yet: it waits for a free slot.")
    with events:
        rows = queries.event_rows(view.history, {job.id: job}, now_ms, limit=500)
        frame = pd.DataFrame(tables.timed(rows, "time", tz)).drop(columns=["job"], errors="ignore")
        st.dataframe(
            frame,
            column_config=tables.EVENTS,
            hide_index=True,
            placeholder="",
            key="history",
            alt="Events, newest first",
        )
    with checkpoints:
        saved(job, now_ms)
    with submission:
        submitted(job)


def tail(job: Job) -> None:
    if job.attempt < 1:
        st.caption("No output yet: no attempt was started.")
        return
    numbers = list(range(job.attempt, max(0, job.attempt - 20), -1))
    number = numbers[0]
    if len(numbers) > 1:
        number = (
            st.segmented_control(
                "Attempt",
                numbers,
                default=numbers[0],
                required=True,
                key="output-of",
                label_visibility="collapsed",
                format_func=lambda n: f"attempt {n}",
            )
            or numbers[0]
        )
    view = live.hub().view(job.id, attempt=number)
    told = view.tails.get(number, "") if view is not None else ""
    if not told:
        st.caption("This attempt has written nothing.")
        return
    if view is not None and number in view.cut:
        st.caption(f"The end of it; `trackside logs {job.id}` prints all.")
    shown = text.block(told)
    long = shown.count("\n") > 20
    with st.container(height=420 if long else "content", border=False, autoscroll=long):
        st.code(shown, language=None, wrap_lines=True)


def story(job: Job, view: JobView, now_ms: int) -> None:
    """What `trackside why` prints: each step of the job's life, the rules and the numbers behind them."""
    tz = text.zone(live.browser_zone())
    snapshot = live.hub().snapshot()
    rows = [
        f"| {'→' if each.at_ms is None else text.clock(each.at_ms, tz, date=True)} | {text.prose(each.text, 1200)} |"
        for each in life.story(snapshot, job, view, now_ms)
    ]
    with st.container(key="story"):
        st.markdown("\n".join(["| When | What |", "| :-- | :-- |", *rows]))
    obstacles = life.kept_off(snapshot, job, now_ms)
    if obstacles:
        st.markdown(
            "\n".join(["What keeps it off each slot:\n", *(f"- {text.prose(each, 300)}" for each in obstacles)])
        )


def saved(job: Job, now_ms: int) -> None:
    if not job.checkpoints:
        st.caption("None yet. `run.checkpointer(model=model, every=100)` in the script writes them.")
        return
    rows = [
        {
            "Step": c.step,
            "Attempt": c.attempt,
            "Name": text.plain(c.name),
            "Size": text.size(c.bytes),
            "Written": text.ago(c.at_ms, now_ms),
            "SHA-256 of its manifest": c.digest[:16],
        }
        for c in job.checkpoints
    ]
    st.dataframe(
        pd.DataFrame(rows), hide_index=True, placeholder="", key="checkpoints", alt="Checkpoints, newest first"
    )


def submitted(job: Job) -> None:
    spec = job.spec
    facts = {
        "Id": job.id,
        "Program": wording.program(spec),
        "Device": spec.device,
        "Retries": str(spec.retries),
        "Time limit": text.span(spec.timeout_s) if spec.timeout_s else "none",
        "Limit of each attempt": text.span(spec.attempt_timeout_s) if spec.attempt_timeout_s else "none",
        "Stall limit": wording.stall_limit(spec.stall_limit_s, text.span),
        "Priority": spec.priority,
        "After": ", ".join(spec.after) or "nothing",
        "Submitted": text.clock(job.created_at_ms, text.zone(live.browser_zone()), date=True),
        "Submitted by": spec.submitted_by or text.UNKNOWN,
        "Snapshot": (spec.snapshot or text.UNKNOWN)[:16],
        **{f"params.{name}": str(value) for name, value in spec.params.items()},
    }
    rows = [{"": text.plain(name, 60), "Value": text.plain(value, 400)} for name, value in facts.items()]
    st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="", key="submission", alt="What was submitted")


@live.part(None)
def download(job_id: str) -> None:
    """In two clicks: Streamlit forgets a file made on demand as soon as another fragment of the page runs."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if not st.button("Metrics as CSV", icon=":material/download:", type="tertiary"):
            return
        view = live.hub().view(job_id)
        lines = view.lines if view is not None else {}
        rows = charts.metrics_csv(lines)
        st.download_button(
            f"Save {text.size(len(rows))}",
            rows,
            file_name=f"{job_id}-metrics.csv",
            mime="text/csv",
            on_click="ignore",
        )
        if any(line.thinned for line in lines.values()):
            st.caption(f"Long metrics are thinned in it; `trackside metrics --csv {job_id}` has every step.")


job_id = chosen()
if job_id is None:
    missing(None)
else:
    header(job_id)
    curves(job_id)
    if found(job_id) is not None:
        download(job_id)
    details(job_id)
