"""What tests with a server share: a home for it, a user who may do everything, its addresses, and its death."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from trackside.bus.acl import USERS
from trackside.server import EmbeddedServer

# May do everything; exists on test servers only, to look behind the scenes and to clean up.
TESTER_RULES = ("~*", "&*", "+@all")


@contextmanager
def short_home() -> Iterator[Path]:
    """An empty home; removed at the end, or left to be looked at if an error ends the block.

    pytest's own temporary paths are too long for a unix socket.
    """
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


def urls_by_user(server: EmbeddedServer) -> Mapping[str, str]:
    """A test server's URLs: those of `acl.USERS`, and that of `tester`."""
    return {user: server.url(user) for user in (*USERS, "tester")}


def emptied(server: EmbeddedServer) -> Mapping[str, str]:
    """Its URLs by user, once all data is removed from it."""
    urls = urls_by_user(server)
    with redis.Redis.from_url(urls["tester"]) as client:
        client.flushall()
    return urls


def plain_client(url: str) -> redis.Redis:
    """One of redis-py's own, with its own errors."""
    return redis.Redis.from_url(url, socket_timeout=2.0)


def reads(tester: redis.Redis) -> int:
    """How often the server was asked for news, by anyone."""
    return int(tester.info("commandstats").get("cmdstat_xread", {}).get("calls", 0))


def killed(server: EmbeddedServer) -> None:
    """SIGKILL, and waiting for it."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def free_port() -> int:
    """A port that is free, and stays so where possible: one that the kernel gives to nobody who asks for any."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    low = max(1024, first // 2)
    while True:
        port = low + secrets.randbelow(first - low) if first > low else 0
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
