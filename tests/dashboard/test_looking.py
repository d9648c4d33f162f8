"""Looking changes nothing: dashboards, their pages and every command that shows something leave each key as it was."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis
from streamlit.testing.v1 import AppTest

from cli_world import World
from dashboard.seed import Seed
from server_harness import reads
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trackside_dashboard.hub import Hub

JOB: Final = "digits-a1b2c3"
ROUNDS: Final = 1000
VIEWERS: Final = 10
PAGES: Final = ("views/fleet.py", "views/jobs.py", "views/job.py", "views/processes.py", "views/events.py")
COMMANDS: Final = (
    ("ls",), ("ls", "--all", "--json"), ("ps",), ("slots",), ("show", JOB), ("why", JOB), ("logs", JOB),
    ("events",), ("events", JOB), ("metrics", JOB), ("top", "--once"), ("wait", "--timeout", "0.2", JOB), ("info",),
    ("doctor",), ("url",),
)  # fmt: skip
READ: Final[dict[bytes, Callable[[redis.Redis, bytes], Any]]] = {
    b"string": lambda tester, key: tester.get(key),
    b"hash": lambda tester, key: tester.hgetall(key),
    b"set": lambda tester, key: tester.smembers(key),
    b"zset": lambda tester, key: tester.zrange(key, 0, -1, withscores=True),
    b"list": lambda tester, key: tester.lrange(key, 0, -1),
    b"stream": lambda tester, key: (tester.xinfo_stream(key)["last-generated-id"], tester.xrange(key)),
}
Fingerprint = dict[bytes, tuple[bytes, Any, int]]


@pytest.fixture
def tester(bus_urls: Mapping[str, str]) -> redis.Redis:
    return redis.Redis.from_url(bus_urls["tester"])


def fingerprint(tester: redis.Redis, prefix: bytes = b"") -> Fingerprint:
    """Every key's type, content and deadline."""
    found: Fingerprint = {}
    for key in tester.scan_iter(match=prefix + b"*"):
        kind = cast(bytes, tester.type(key))
        found[key] = (kind, READ[kind](tester, key), tester.pexpiretime(key))
    return found


@pytest.fixture
def still(seed: Seed, tester: redis.Redis) -> Fingerprint:
    """What is there once the beats that were meant to run out have done so, and nobody writes any more."""
    wait_until(
        lambda: all(left == -1 or left > 60_000 for left in map(tester.pttl, tester.scan_iter())), 20, "beats stay"
    )
    return fingerprint(tester)


def test_a_thousand_looks_of_ten_dashboards_change_no_key(
    still: Fingerprint, tester: redis.Redis, bus_urls: Mapping[str, str], new_hub: Callable[[str], Hub]
) -> None:
    before = reads(tester)
    hubs = [new_hub(bus_urls["dashboard"]) for _ in range(VIEWERS)]

    def all_looked() -> bool:
        for hub in hubs:
            hub.view(JOB, attempt=1, wait_s=0.0)
        return reads(tester) - before >= ROUNDS

    wait_until(all_looked, 100, "the dashboards look too seldom")
    assert fingerprint(tester) == still


def test_ten_viewers_of_every_page_change_no_key(
    still: Fingerprint, tester: redis.Redis, bus_urls: Mapping[str, str], visit: Callable[..., AppTest]
) -> None:
    for page in islice(cycle(PAGES), VIEWERS):
        app = visit(bus_urls["dashboard"], page, job=JOB).run()
        assert not app.exception
    assert fingerprint(tester) == still


def test_no_command_that_shows_something_changes_a_key(
    still: Fingerprint, tester: redis.Redis, redis_server: EmbeddedServer, bus_urls: Mapping[str, str]
) -> None:
    world = World.at(redis_server.home, bus_urls)
    for command in COMMANDS:
        answer = world.run(*command, code=None)
        assert answer.code in (0, 1, 124), (command, answer)
        assert answer.out or answer.err, command
    assert fingerprint(tester) == still


def test_rq_info_changes_no_key_of_ours(still: Fingerprint, tester: redis.Redis, bus_urls: Mapping[str, str]) -> None:
    """RQ's own command cleans RQ's own registries, so only what is Trackside's is compared."""
    ours = {key: value for key, value in still.items() if key.startswith(b"ts:")}
    assert ours
    command = [str(Path(sys.executable).with_name("rq")), "info", "--url", bus_urls["trainer"]]
    for _ in range(3):
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    assert fingerprint(tester, b"ts:") == ours


def test_the_fingerprint_sees_a_change_of_content_and_of_a_deadline(still: Fingerprint, tester: redis.Redis) -> None:
    """Without this the tests above could compare nothing."""
    beat = next(key for key in still if key.startswith(b"ts:beat:"))
    tester.pexpire(beat, 999_999)
    assert fingerprint(tester) != still
    tester.sadd("ts:slots", "another")
    assert {key for key, value in fingerprint(tester).items() if value != still[key]} == {beat, b"ts:slots"}
