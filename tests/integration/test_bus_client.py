"""What a call costs in round trips, what is asked again when the line breaks, and how a full server is told of."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
import redis
from redis.connection import AbstractConnection

from chaos.proxy import Proxy
from trackside.bus import beats, keys, streams
from trackside.bus.client import Client, bus_errors, check_writes, connect, now_ms, with_password
from trackside.errors import BusUnavailable
from trackside.models import Beat, EventKind, JobSpec, Program, Role, Slot
from trackside.secretfiles import read_password
from trackside.server import EmbeddedServer
from trackside.store import Change, Store
from trackside.testing import wait_until

BEAT: Final = Beat(role=Role.WORKER, name="w1", host="h", pid=1, started_at_ms=1, at_ms=0)
SPEC: Final = JobSpec(program=Program(kind="script", target="a.py"))
SLOT: Final = Slot(id="h-cpu0", host="h", kind="cpu", storage="disk")


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """How many round trips a call takes."""
    sent: list[int] = []
    send = AbstractConnection.send_packed_command

    def counted(self: AbstractConnection, command: Any, check_health: bool = True) -> Any:
        sent.append(1)
        return send(self, command, check_health)  # type: ignore[no-untyped-call]  # redis-py's own

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)

    def count(act: Callable[[], Any]) -> int:
        sent.clear()
        act()
        return len(sent)

    return count


@pytest.fixture
def far(
    line: Proxy, redis_server: EmbeddedServer, bus_urls: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """What is asked again is asked however long a busy machine takes for it."""
    monkeypatch.setattr("trackside.retry._AT_ONCE_LIMIT_S", 10.0)
    password = read_password(redis_server.home / "secrets" / "supervisor")
    client = connect(with_password(f"redis://supervisor@127.0.0.1:{line.port}/0", password), name="far")
    yield client
    client.close()


def test_on_a_bad_line_every_round_trip_counts(
    bus_urls: Mapping[str, str], trips: Callable[[Callable[[], Any]], int]
) -> None:
    client = connect(bus_urls["supervisor"], name="near")
    store = Store(client, by="cli:test")
    assert trips(client.ping) == 2  # one to greet, one to ask
    assert trips(lambda: store.submit("trips-1", "trips", SPEC)) == 2
    assert trips(lambda: store.change_with_breaker("trips-1", SLOT.id, lambda job, *_: Change(job=job))) == 2
    assert trips(lambda: store.cancel("trips-1")) == 2
    store.register_slot(SLOT)
    assert trips(lambda: store.cordon(SLOT.id, cordoned=True)) == 2
    beats.publish(client, BEAT, 4.0)
    assert trips(lambda: beats.publish(client, BEAT, 4.0)) == 1


def test_dropping_a_pipeline_runs_nothing_that_a_ctrl_c_could_be_lost_in(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    pipe = client.pipeline()
    pipe.set("x", "y")
    ran: list[str] = []
    gc.collect()
    gc.disable()  # it may run what others have left behind
    sys.setprofile(lambda frame, event, _: ran.append(frame.f_code.co_qualname) if event == "call" else None)
    try:
        del pipe
    finally:
        sys.setprofile(None)
        gc.enable()
    client.close()
    assert ran == []


def test_a_connection_says_who_it_is(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"], name="near")
    assert client.client_info()["name"] == "near"
    assert client.client_info()["user"] == "supervisor"


def test_a_lost_answer_is_asked_for_again(far: Client, line: Proxy) -> None:
    far.ping()
    line.drop_replies(2)
    assert now_ms(far) > 0
    assert line.resets == 2


def test_a_write_is_never_sent_again_by_itself(far: Client, line: Proxy) -> None:
    far.delete("ts:test:list")
    line.drop_replies(1)
    with pytest.raises(BusUnavailable):
        far.rpush("ts:test:list", "x")
    wait_until(lambda: far.llen("ts:test:list") == 1, 5.0, "the write was not done once")


def test_a_change_whose_answer_was_lost_is_made_once(far: Client, line: Proxy) -> None:
    store = Store(far, by="cli:test")
    store.submit("lost-1", "lost", SPEC)
    line.drop_replies(1)
    store.pause("lost-1")
    line.drop_replies(2)
    store.resume("lost-1")
    kinds = [event.kind for _, event in streams.history(far, "lost-1")]
    assert kinds == [EventKind.SUBMITTED, EventKind.TRANSITION, EventKind.TRANSITION]


def test_a_beat_reckoned_from_a_wrong_clock_is_put_right_at_once(bus_urls: Mapping[str, str]) -> None:
    """A server that was set, or that another took the place of."""
    client = connect(bus_urls["supervisor"])
    beats.publish(client, BEAT, 60.0)
    assert client.server_ahead_ms is not None
    client.server_ahead_ms -= 3_600_000
    beats.publish(client, replace(BEAT, pid=2), 60.0)
    now, deadlines = beats.deadlines(client)
    assert 40_000 < deadlines["worker:w1"] - now <= 60_001  # two clocks in whole ms: when it is now may be one ms ahead


def test_asking_whether_writes_are_taken_writes_nothing(bus_urls: Mapping[str, str]) -> None:
    client = connect(bus_urls["supervisor"])
    check_writes(client)
    assert not client.exists(keys.PROBE)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "memory"),
        (redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), "disk"),
        (redis.ResponseError("Command # 1 (SET x) of pipeline caused error: MISCONF Errors writing"), "disk"),
    ],
)
def test_a_full_server_is_one_that_is_away(error: Exception, full: str) -> None:
    with pytest.raises(BusUnavailable) as caught, bus_errors():
        raise error
    assert caught.value.facts["full"] == full
