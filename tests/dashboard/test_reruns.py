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

TRIES: Final = 60
SKELETON: Final = 40  # parts of a page whose reader has not yet connected: fewer
pytestmark = pytest.mark.timeout(90)


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


def ask(opened: ClientConnection, fragment: str = "") -> None:
    """Ask for the whole page, or for one of its fragments as a timer does."""
    message = BackMsg()
    message.rerun_script.query_string = ""
    message.rerun_script.fragment_id = fragment
    message.rerun_script.is_auto_rerun = bool(fragment)
    opened.send(message.SerializeToString())


def whole_page(opened: ClientConnection) -> tuple[list[tuple[int, ...]], list[str]]:
    """Where the parts of the next whole page that is drawn to its end stand, and its fragments that have a timer."""
    places: list[tuple[int, ...]] = []
    timers: list[str] = []
    while True:
        message = ForwardMsg.FromString(opened.recv(timeout=30, decode=False))
        kind = message.WhichOneof("type")
        if kind == "new_session":
            places, timers = [], []
        elif kind in {"delta", "ref_hash"}:
            places.append(tuple(message.metadata.delta_path))
        elif kind == "auto_rerun":
            timers.append(message.auto_rerun.fragment_id)
        elif kind == "script_finished" and message.script_finished == ForwardMsg.FINISHED_SUCCESSFULLY:
            return places, timers  # a fragment's end has another status


# What a busy machine does by chance, always: what is asked during a refresh waits for its end, in the same thread.
@pytest.mark.parametrize("dashboard", [{"STREAMLIT_RUNNER_FAST_RERUNS": "false"}], indirect=True)
def test_a_refresh_that_is_under_way_moves_nothing(dashboard: Dashboard) -> None:
    with session(dashboard) as opened:

        def asked() -> tuple[list[tuple[int, ...]], list[str]]:
            ask(opened)
            return whole_page(opened)

        wait_until(lambda: len(asked()[0]) > SKELETON, 20, "nothing arrives on the page")
        places, timers = asked()
        for number in range(TRIES):
            ask(opened, timers[number % len(timers)])
            ask(opened)
            again, timers = whole_page(opened)
            assert again == places, f"try {number}"
