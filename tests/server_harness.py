"""What the tests with a server of their own share: a home for it, a user who may do everything, and its addresses."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
