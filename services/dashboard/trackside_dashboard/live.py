"""The session's side: the shared hub, and what every page shows of its freshness."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec

import streamlit as st

from trackside.bus.client import service_url
from trackside.config import Settings
from trackside_dashboard import refusals, style, text
from trackside_dashboard.hub import Hub

P = ParamSpec("P")
REFRESH_S: Final = 1.0
_given: list[Settings] = []  # by `main`, which runs this app in its own process


def give(settings: Settings) -> None:
    """Say what the app of this process is to use."""
    _given[:] = [settings]


@st.cache_resource(show_spinner=False, on_release=lambda hub: hub.stop())
def hub() -> Hub:
    """The one reader of this process."""
    settings = _given[0] if _given else Settings.from_environ()
    return Hub(lambda: service_url(settings)).start()


def browser_zone() -> str | None:
    """The viewer's time zone, where the browser told it."""
    return st.context.timezone


def part(every_s: float | None = REFRESH_S) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Makes a part of a page that is drawn by itself, every so often, in a container that nothing else is in.

    When a refresh begins before the page around it was sent, Streamlit 1.67 drops that page's copy of the part; the
    browser then closes the gap, and whatever stood behind it in the same container is no longer found in its place.
    """

    def decorate(draw: Callable[P, None]) -> Callable[P, None]:
        fragment = st.fragment(run_every=every_s)(draw)

        @wraps(draw)
        def alone(*args: P.args, **kwargs: P.kwargs) -> None:
            with st.container():
                fragment(*args, **kwargs)

        return alone

    return decorate


@st.fragment(run_every=REFRESH_S)  # no container of its own: it stands last in its row, and is as wide as it is
def freshness() -> None:
    """The badge that says how old everything on the page is; greys the page where it is not live."""
    health = hub().health()
    if health.state == "live":
        st.badge("live", icon=":material/sensors:", color="green")
    else:
        since = text.clock(health.seen_at_ms, text.zone(browser_zone()))
        if health.state == "stale":
            st.badge(
                f"stale since {since} ({text.whole_span(health.age_s or 0)})", icon=":material/history:", color="red"
            )
        elif health.error is None:
            st.badge("connecting", icon=":material/more_horiz:", color="gray")
        else:
            st.badge("no server", icon=":material/cloud_off:", color="red")


@part()
def trouble() -> None:
    """What is wrong with the server or the way to it, and what to do; greys the page while its data are old."""
    health = hub().health()
    if health.state == "stale":
        st.html(style.GREY)
    if health.state != "live" and health.error is not None:
        kept = "Below is what it last said. " if health.state == "stale" else ""
        st.error(
            f"{text.md(health.error, 300)}\n\n{kept}This page connects again by itself; "
            "`trackside up` starts the server with everything else.",
            icon=":material/cloud_off:",
        )
    refused = hub().snapshot().refused
    if health.state == "live" and refused is not None:
        st.error(
            f"{refusals.WORDS[refused]}\n\nTraining goes on; what it logs arrives later. Until then no job starts, and "
            "processes may look silent that are well, since their beats are refused. `trackside doctor` tells more.",
            icon=":material/database_off:",
        )
    if health.faults:
        st.warning(
            f"The reader of this page failed {health.faults} times and went on; last: {text.md(health.fault, 200)}",
            icon=":material/error:",
        )
