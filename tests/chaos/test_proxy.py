"""The proxy does what it is told to, and a client that it harms gets an error of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from chaos.proxy import Proxy
from trackside.bus.client import Client, connect
from trackside.errors import BusUnavailable
from trackside.server import EmbeddedServer

pytestmark = pytest.mark.timeout(30)
LIMIT_S = 2.0  # of a command, far above what a line here takes that is slow on purpose


@pytest.fixture
def proxy(own_server: EmbeddedServer) -> Iterator[Proxy]:
    with Proxy(own_server.socket_path, 1) as proxy:
        yield proxy


@pytest.fixture
def client(own_server: EmbeddedServer, proxy: Proxy) -> Iterator[Client]:
    password = own_server.url("supervisor").split("@")[0].split(":")[-1]
    client = connect(f"redis://supervisor:{password}@127.0.0.1:{proxy.port}/0", command_limit_s=LIMIT_S)
    client.set("ts:x", "1")
    yield client
    client.close()


def test_a_lost_reply_is_an_error_though_the_command_ran(
    own_server: EmbeddedServer, proxy: Proxy, client: Client
) -> None:
    proxy.drop_replies(1)
    with pytest.raises(BusUnavailable):
        client.incr("ts:x")
    assert connect(own_server.url("supervisor")).get("ts:x") == b"2"


def test_a_connection_that_breaks_in_the_middle_of_a_change_is_no_lost_race(proxy: Proxy, client: Client) -> None:
    """redis-py calls it a WatchError, which would end a service that expects one from EXEC only."""
    with client.pipeline() as pipe:
        pipe.watch("ts:x")
        proxy.drop_replies(1)
        with pytest.raises(BusUnavailable, match="in the middle of a change"):
            pipe.get("ts:x")


@pytest.mark.parametrize("way", ["swallow_requests", "swallow_replies"])
def test_a_half_open_line_is_an_error_after_the_commands_limit(proxy: Proxy, client: Client, way: str) -> None:
    proxy.change(**{way: True})
    with pytest.raises(BusUnavailable):
        client.get("ts:x")
    proxy.clear()
    assert client.get("ts:x") == b"1"


def test_delay_and_throttle_take_their_time(proxy: Proxy, client: Client) -> None:
    proxy.change(delay_s=0.05)
    began_s = time.monotonic()
    client.get("ts:x")
    assert time.monotonic() - began_s >= 0.1
    proxy.clear()
    proxy.change(bytes_per_s=100_000.0)
    began_s = time.monotonic()
    client.set("ts:x", b"x" * 20_000)
    assert time.monotonic() - began_s >= 0.2
    proxy.change(reset_share=1.0)
    with pytest.raises(BusUnavailable):
        client.get("ts:x")
