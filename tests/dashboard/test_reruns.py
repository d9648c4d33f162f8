"""A page that is drawn anew while a part of it is being refreshed comes out as it was, and in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect

from dashboard.served import Dashboard
from trackside.testing import wait_until

JOB: Final = "digits-a1b2c3"
TRIES: Final = 60
BELOW: Final = 10**6  # more than anything has children
SKELETON: Final = 40  # parts of a page whose reader has not yet connected: fewer
Place = tuple[int, ...]
pytestmark = pytest.mark.timeout(240)


@contextmanager
def session(dashboard: Dashboard) -> Iterator[ClientConnection]:
    """What a browser opens for a page."""
    with connect(
        f"ws://127.0.0.1:{dashboard.port}/_stcore/stream",
        origin=websockets.Origin(dashboard.at("")),
        subprotocols=[websockets.Subprotocol("streamlit")],
        max_size=None,
    ) as opened:
        yield opened


def ask(opened: ClientConnection, fragment: str = "", page: str = "") -> None:
    """Ask for the whole page, or for one of its fragments as a timer does."""
    message = BackMsg()
    message.rerun_script.query_string = f"job={JOB}" if page == "job" else ""
    message.rerun_script.page_name = page
    message.rerun_script.fragment_id = fragment
    message.rerun_script.is_auto_rerun = bool(fragment)
    opened.send(message.SerializeToString())


def whole_page(opened: ClientConnection) -> tuple[list[Place], list[str], list[Place]]:
    """Of the next whole page that is drawn to its end: where everything stands, its timers, where fragments stand."""
    places: list[Place] = []
    timers: list[str] = []
    parts: dict[str, Place] = {}
    while True:
        message = ForwardMsg.FromString(opened.recv(timeout=30, decode=False))
        kind = message.WhichOneof("type")
        if kind == "new_session":
            places, timers, parts = [], [], {}
        elif kind in {"delta", "ref_hash"}:
            place = tuple(message.metadata.delta_path)
            places.append(place)
            if message.delta.fragment_id:
                parts.setdefault(message.delta.fragment_id, place)
        elif kind == "auto_rerun":
            timers.append(message.auto_rerun.fragment_id)
        elif kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
            return places, timers, list(parts.values())  # a fragment's end has another status


# What a busy machine does by chance, always: what is asked during a refresh waits for its end, in the same thread.
@pytest.mark.parametrize("dashboard", [{"STREAMLIT_RUNNER_FAST_RERUNS": "false"}], indirect=True)
def test_a_refresh_that_is_under_way_moves_nothing(dashboard: Dashboard) -> None:
    with session(dashboard) as opened:

        def asked() -> tuple[list[Place], list[str]]:
            ask(opened)
            return whole_page(opened)[:2]

        wait_until(lambda: len(asked()[0]) > SKELETON, 20, "nothing arrives on the page")
        places, timers = asked()
        for number in range(TRIES):
            ask(opened, timers[number % len(timers)])
            ask(opened)
            again, timers, _ = whole_page(opened)
            assert again == places, f"try {number}"


@pytest.mark.parametrize("page", ["", "jobs", "job", "processes", "events"])
def test_nothing_stands_behind_a_part_that_is_refreshed(dashboard: Dashboard, page: str) -> None:
    """A refresh that overtakes its page makes the browser close a gap there: what stood behind it would be lost."""
    with session(dashboard) as opened:
        ask(opened, page=page)
        places, _, parts = whole_page(opened)
    assert len(parts) >= 3 + (page == "job"), parts
    for at in parts:
        inside, index = at[:-1], at[-1]
        behind = [place for place in places if place[: len(inside)] == inside and place[len(inside) :] > (index, BELOW)]
        assert not behind, f"behind the part at {at}"
