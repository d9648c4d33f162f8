"""Signs of life: a key with a TTL for people and dashboards, a deadline in a sorted set for the supervisor.

Deadlines are in the server's time, so no two hosts' clocks are ever compared, and they do not rest on expired-key
events, which come late when many keys have a TTL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, cast

from trackside.bus import keys
from trackside.bus.client import Client, Pipeline, now_ms
from trackside.clock import since_boot_s
from trackside.codec import decode, encode
from trackside.errors import DecodeError
from trackside.models import Beat, Role
from trackside.processes import start_time
from trackside.retry import at_once

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_CLOCK_SLACK_MS: Final = 500  # a slow line's delay is less; a server that was moved or set shows more


def publish(client: Client, beat: Beat, ttl_s: float, also: Callable[[Pipeline], None] = lambda _: None) -> None:
    """Write a beat and move its deadline to `ttl_s` from now; `also` puts more on the same way.

    One round trip: what the server's clock says now is reckoned from its last answer, since a slow or breaking line
    may not carry two. If the answer shows that this was wrong, the beat is written once more. When this process started
    is told in the server's time too, whatever its own clock says.
    """
    ttl_ms = int(ttl_s * 1000)
    if client.server_ahead_ms is None:
        client.server_ahead_ms = now_ms(client) - _since_boot_ms()

    def write() -> int:
        reckoned = _since_boot_ms() + (client.server_ahead_ms or 0)
        with client.pipeline(transaction=False) as pipe:
            pipe.time()
            stamped = replace(beat, at_ms=reckoned, started_at_ms=_started_at_ms(beat, client.server_ahead_ms or 0))
            pipe.set(keys.beat(beat.role, beat.name), encode(stamped), px=ttl_ms)
            pipe.zadd(keys.DEADLINES, {keys.deadline_member(beat.role, beat.name): reckoned + ttl_ms})
            also(pipe)
            (seconds, micros), *_ = pipe.execute()
        told = int(seconds) * 1000 + int(micros) // 1000
        client.server_ahead_ms = told - _since_boot_ms()
        return abs(told - reckoned)

    if at_once(write) > _CLOCK_SLACK_MS:
        at_once(write)


def retire(client: Client, role: Role, name: str) -> None:
    """Take a process off the books at its orderly end."""
    with client.pipeline() as pipe:
        pipe.delete(keys.beat(role, name))
        pipe.zrem(keys.DEADLINES, keys.deadline_member(role, name))
        pipe.execute()


def forget(client: Client, *, silent_s: float) -> None:
    """Take off the books who has been silent for that long: a killed service's name holds a pid and never returns."""
    client.zremrangebyscore(keys.DEADLINES, "-inf", now_ms(client) - int(silent_s * 1000))


def deadlines(client: Client) -> tuple[int, dict[str, int]]:
    """The server's time and every `<role>:<name>` with its deadline, both in ms."""
    with client.pipeline(transaction=False) as pipe:  # the dashboard's user may not MULTI
        pipe.time()
        pipe.zrange(keys.DEADLINES, 0, -1, withscores=True)
        (seconds, micros), scores = pipe.execute()
    return seconds * 1000 + micros // 1000, {member.decode(): int(score) for member, score in scores}


def read(client: Client, members: Sequence[str] | None = None) -> dict[str, Beat | None]:
    """These processes, or every known one, by `<role>:<name>`; None where its beat has expired or cannot be read."""
    if members is None:
        members = [member.decode() for member in cast(list[bytes], client.zrange(keys.DEADLINES, 0, -1))]
    if not members:
        return {}
    raw = cast(list[bytes | None], client.mget([keys.beat(*member.split(":", 1)) for member in members]))
    return {member: _decoded(value) for member, value in zip(members, raw, strict=True)}


def _decoded(raw: bytes | None) -> Beat | None:
    try:
        return None if raw is None else decode(Beat, raw)
    except DecodeError:
        return None


def _started_at_ms(beat: Beat, server_ahead_ms: int) -> int:
    """When this process started, in the server's time; another's is passed on as it was told."""
    ticks = start_time(beat.pid) if beat.pid == os.getpid() else None
    return beat.started_at_ms if ticks is None else server_ahead_ms + ticks * 1000 // _TICKS_PER_S


def _since_boot_ms() -> int:
    return int(since_boot_s() * 1000)
