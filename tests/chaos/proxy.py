"""A TCP proxy before a Redis server that does what bad networks do: delay, throttle, swallow, cut, lose a reply.

It runs in a thread of its own, knows nothing of the protocol but where a reply ends up (the direction), and every
chance in it comes from one seed.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_CHUNK: Final = 16 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What the network does to every connection, until it is changed."""

    delay_s: float = 0.0  # in each direction
    jitter_s: float = 0.0  # up to this much more
    bytes_per_s: float | None = None
    swallow_requests: bool = False  # half-open: what is sent never arrives
    swallow_replies: bool = False  # what is answered never arrives, though it was done
    reset_share: float = 0.0  # of chunks that end their connection with a reset, in the middle of the chunk


class Proxy:
    """Listens on a port of this machine and passes everything on to a server's socket, as the weather allows."""

    def __init__(self, upstream: Path, seed: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.connections = 0
        self.resets = 0
        self._weather = Weather()
        self._rng = random.Random(seed)
        self._drop_replies = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(10), "the proxy does not listen"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def change(self, **changes: Any) -> None:
        """Change the weather from now on, for open connections too."""
        self._weather = replace(self._weather, **changes)

    def clear(self) -> None:
        """Fair weather again; what was swallowed stays lost, so those connections are cut."""
        lost = self._weather.swallow_requests or self._weather.swallow_replies
        self._weather = Weather()
        if lost:
            self.reset_all()

    def drop_replies(self, count: int) -> None:
        """Swallow the next `count` replies and cut their connections: done, but nobody was told."""
        self._drop_replies = count

    def reset_all(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            self._loop.call_soon_threadsafe(_reset, writer)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(str(self.upstream))
        except OSError:
            _reset(writer)
            return
        pair = {writer, up_writer}
        self._writers |= pair
        try:
            await asyncio.gather(
                self._pass_on(reader, up_writer, pair, replies=False),
                self._pass_on(up_reader, writer, pair, replies=True),
            )
        finally:
            self._writers -= pair
            for each in pair:
                with suppress(Exception):
                    each.close()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: set[asyncio.StreamWriter], replies: bool
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(_CHUNK):
                weather = self._weather
                if weather.delay_s or weather.jitter_s:
                    await asyncio.sleep(weather.delay_s + self._rng.uniform(0, weather.jitter_s))
                if weather.bytes_per_s:
                    await asyncio.sleep(len(data) / weather.bytes_per_s)
                if weather.swallow_replies if replies else weather.swallow_requests:
                    continue
                if replies and self._drop_replies > 0:
                    self._drop_replies -= 1
                    self._cut(pair)
                    return
                if weather.reset_share and self._rng.random() < weather.reset_share:
                    writer.write(data[: self._rng.randrange(len(data))])
                    with suppress(OSError):
                        await writer.drain()
                    self._cut(pair)
                    return
                writer.write(data)
                await writer.drain()
        with suppress(OSError):
            writer.close()

    def _cut(self, pair: set[asyncio.StreamWriter]) -> None:
        self.resets += 1
        for each in pair:
            _reset(each)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset instead of a farewell."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
