"""The embedded server, for real: hardened, persistent, one to a home."""

from __future__ import annotations

import redis

from trackside.server import EmbeddedServer


def test_data_survives_a_stop_and_a_start(own_server: EmbeddedServer) -> None:
    with redis.Redis.from_url(own_server.url("trainer")) as client:
        client.set("ts:kept", "yes")
    port = own_server.port
    own_server.stop()

    with own_server, redis.Redis.from_url(own_server.url("trainer", tcp=True)) as client:
        assert client.get("ts:kept") == b"yes"
        assert own_server.port == port
