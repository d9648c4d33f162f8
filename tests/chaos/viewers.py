"""Many viewers of one dashboard, without browsers: each is a websocket session that Streamlit draws pages for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import websockets
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import connect

from dashboard.served import serves
from server_harness import free_port
from trackside.cli.throwaway import Throwaway
from trackside.testing import wait_until


class Viewers:
    """Sessions in a thread of their own; every third one never reads what it is sent."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.drawn: set[int] = set()  # sessions whose page was drawn once
        self.failed: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._sessions: list[asyncio.Task[None]] = []
        self._thread.start()

    def come(self, count: int) -> None:
        """Let so many more look at the dashboard."""
        first = len(self._sessions)
        for number in range(first, first + count):
            asyncio.run_coroutine_threadsafe(self._start(number), self._loop).result(10)

    def reading(self) -> int:
        """How many have seen their page."""
        return len(self.drawn)

    def leave(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self, number: int) -> None:
        self._sessions.append(asyncio.create_task(self._look(number)))

    async def _end(self) -> None:
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)

    async def _look(self, number: int) -> None:
        origin = f"http://127.0.0.1:{self.port}"
        url = f"ws://127.0.0.1:{self.port}/_stcore/stream"
        try:
            async with connect(
                url, origin=websockets.Origin(origin), subprotocols=[websockets.Subprotocol("streamlit")],
                max_size=None, open_timeout=60, ping_interval=None,
            ) as session:  # fmt: skip
                draw = BackMsg()
                draw.rerun_script.query_string = ""
                await session.send(draw.SerializeToString())
                async for message in session:
                    if (
                        isinstance(message, bytes)
                        and ForwardMsg.FromString(message).WhichOneof("type") == "script_finished"
                    ):
                        self.drawn.add(number)
                        if number % 3 == 2:
                            await asyncio.sleep(3600)
        except (OSError, websockets.WebSocketException) as error:
            self.failed.append(f"{type(error).__name__}: {error}")


@contextmanager
def dashboard(system: Throwaway) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The system's dashboard as its own process, and its port."""
    port = free_port()
    env = {**system.env, "TRACKSIDE_DASHBOARD_PORT": str(port)}
    command = [sys.executable, "-m", "trackside", "--home", str(system.home), "dashboard"]
    with (Path(system.home) / "logs" / "viewed.log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(process, port), 40.0, "the dashboard does not answer")
        yield process, port
    finally:
        process.kill()
        process.wait()


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None, f"the dashboard ended with status {process.returncode}"
    return serves(port, within_s=2.0)
