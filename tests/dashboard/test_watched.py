"""The end of an attempt's output: never empty where something was written, and nothing of another's is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import redis

from trackside.bus import streams
from trackside.bus.client import Client, connect
from trackside_dashboard.watched import TAIL_BYTES, Tail

JOB = "digits-a1b2c3"


@pytest.fixture
def client(bus_urls: Mapping[str, str]) -> Iterator[Client]:
    with connect(bus_urls["tester"]) as connected:
        yield connected


def ship(client: Client, number: int, sequence: int, text: bytes) -> None:
    assert streams.ship_output(client, JOB, number, sequence, text) is streams.Shipped.ACCEPTED


@pytest.mark.parametrize(
    "text", [b"\r 50%|#####     |" * 8_000 + b"\n", b"x" * 100_000 + b"\n"], ids=["a bar that ended", "one long line"]
)
def test_output_without_a_line_break_is_shown(client: Client, text: bytes) -> None:
    ship(client, 1, len(text), text)
    tail = Tail()
    assert tail.read(client, JOB, 1)
    assert tail.text == text[-TAIL_BYTES:]
    assert tail.cut


def test_a_long_output_begins_with_a_whole_line(client: Client) -> None:
    text = b"".join(b"line %d\n" % number for number in range(20_000))
    ship(client, 1, len(text), text)
    tail = Tail()
    tail.read(client, JOB, 1)
    assert tail.text.startswith(b"line ")
    assert text.endswith(b"\n" + tail.text)


def test_the_output_of_an_ended_attempt_fetches_none_of_the_next(client: Client, bus_urls: Mapping[str, str]) -> None:
    ship(client, 1, 5, b"ended")
    tail = Tail()
    tail.read(client, JOB, 1)
    for number in range(1, 101):
        ship(client, 2, 10_000 * number, b"x" * 10_000)
    tester = redis.Redis.from_url(bus_urls["tester"])

    def sent_bytes() -> int:
        return int(tester.info("stats")["total_net_output_bytes"])

    before = sent_bytes()
    assert not tail.read(client, JOB, 1)
    assert sent_bytes() - before < 100_000
    assert tail.text == b"ended"
