"""What each user can do on the real server, tried command by command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from server_harness import plain_client
from trackside.bus.acl import SERVICE_USERS, USERS
from trackside.server import EmbeddedServer


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _do(client: redis.Redis, *words: str) -> Any:
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def _commands(table: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[list[str], set[str], int]]:
    """Each command of the server's own table, subcommands apart: its words, flags and least number of words."""
    for name, facts in table.items():
        subcommands = facts.get("subcommands") or []
        if not subcommands:
            yield [name], {str(flag) for flag in facts["flags"]}, abs(int(facts["arity"]))
        for entry in subcommands:
            yield _text(entry[0]).split("|"), {_text(flag) for flag in entry[2]}, abs(int(entry[1]))


def _denied(client: redis.Redis, words: list[str]) -> bool:
    try:
        _do(client, *words)
    except NoPermissionError:
        return True
    except (ResponseError, RedisTimeout):  # one that blocks was let in
        return False
    return False


def _allowed(client: redis.Redis, commands: list[tuple[list[str], int]]) -> list[str]:
    """Tried with the least number of words and with more, as the server counts before it looks at permissions."""
    return [
        " ".join(words)
        for words, least in commands
        if not _denied(client, [*words, *["ts:x"] * (least + 1)])
        and not _denied(client, [*words, *["ts:x"] * (least - len(words))])
    ]


@pytest.fixture
def table(bus_urls: Mapping[str, str]) -> list[tuple[list[str], set[str], int]]:
    with plain_client(bus_urls["tester"]) as tester:
        return list(_commands(tester.command()))


def test_the_dashboard_is_refused_every_command_that_writes(
    bus_urls: Mapping[str, str], table: list[tuple[list[str], set[str], int]]
) -> None:
    writing = [(words, least) for words, flags, least in table if "write" in flags]
    blocking = {words[0] for words, flags, _ in table if {"write", "blocking"} <= flags}
    assert len(writing) > 80, "the server's table was not read"
    assert {"blpop", "blmove", "bzpopmin"} <= blocking
    with plain_client(bus_urls["dashboard"]) as dashboard:
        assert _allowed(dashboard, writing) == []
    with plain_client(bus_urls["tester"]) as tester:
        assert tester.dbsize() == 0
    with plain_client(bus_urls["trainer"]) as trainer:
        seen = _allowed(trainer, [each for each in writing if each[0][0] not in blocking])
        assert {"set", "hset", "xadd", "del"} <= set(seen), "this test could not see a permission"
        assert not _denied(trainer, ["blmove", "ts:x", "ts:y", "left", "left", "0"]), "nor one to block"


def test_no_service_gets_a_command_that_the_server_calls_dangerous(
    bus_urls: Mapping[str, str], redis_server: EmbeddedServer
) -> None:
    with plain_client(bus_urls["tester"]) as tester:
        kinds = ("dangerous", "admin", "scripting")
        dangerous = {name for kind in kinds for name in tester.acl_cat(kind)}
    dangerous = {_text(name) for name in dangerous} - {"info"}
    assert {"flushall", "shutdown"} <= dangerous, "the server's categories were not read"
    for user in SERVICE_USERS:
        with plain_client(bus_urls[user]) as client:
            allowed = [name for name in dangerous if not _refused(client, name)]
        assert allowed == [], user


def _refused(client: redis.Redis, name: str) -> bool:
    """Refused for lack of permission, or because this server does not have the name; tried with 0 to 5 arguments."""
    for count in range(6):
        try:
            _do(client, *name.split("|"), *["1"] * count)
        except NoPermissionError:
            return True
        except ResponseError as error:
            if "unknown" in str(error).lower():
                return True
            if "wrong number of arguments" not in str(error):
                return False
        else:
            return False
    return False


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "command",
    [
        ("EVAL", "return 1", "0"),
        ("EVALSHA", "0" * 40, "0"),
        ("EVAL_RO", "return 1", "0"),
        ("SCRIPT", "LOAD", "return 1"),
        ("FUNCTION", "LOAD", "#!lua name=f\n"),
        ("FCALL", "f", "0"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "SET", "dir", "/tmp"),  # noqa: S108 -- a value that must be refused
        ("DEBUG", "SLEEP", "0"),
        ("MODULE", "LIST"),
        ("REPLICAOF", "NO", "ONE"),
        ("RESTORE", "ts:x", "0", "x"),
        ("MONITOR",),
        ("FLUSHALL",),
        ("ACL", "SETUSER", "admin", "+@all"),
        ("CLIENT", "KILL", "TYPE", "normal"),
    ],
    ids=lambda command: " ".join(command[:2])[:14],
)
def test_nobody_may_script_list_keys_or_change_the_server(
    bus_urls: Mapping[str, str], user: str, command: tuple[str, ...]
) -> None:
    with (
        plain_client(bus_urls[user]) as client,
        pytest.raises(ResponseError, match=r"(?i)no permissions|unknown command"),
    ):
        _do(client, *command)


def test_the_dashboard_reads_what_it_shows(bus_urls: Mapping[str, str]) -> None:
    with plain_client(bus_urls["trainer"]) as trainer:
        trainer.set("ts:string", "1")
        trainer.hset("ts:hash", mapping={"a": "1"})
        trainer.rpush("rq:queue:gpu", "job")
        trainer.zadd("ts:zset", {"a": 1.0})
        trainer.sadd("ts:set", "a")
        trainer.xadd("ts:stream", {"a": "1"}, id="1-1")
    with plain_client(bus_urls["dashboard"]) as dashboard:
        assert dashboard.get("ts:string") == b"1"
        assert dashboard.mget("ts:string", "ts:none") == [b"1", None]
        assert dashboard.hgetall("ts:hash") == {b"a": b"1"}
        assert dashboard.lrange("rq:queue:gpu", 0, -1) == [b"job"]
        assert dashboard.zrange("ts:zset", 0, -1, withscores=True)
        assert dashboard.smembers("ts:set") == {b"a"}
        assert dashboard.xread({"ts:stream": "0"})
        assert dashboard.xrevrange("ts:stream", count=1)
        assert dashboard.xlen("ts:stream") == 1
        assert dashboard.ttl("ts:string") == -1
        assert dashboard.time()
        pipeline = dashboard.pipeline(transaction=False)
        pipeline.get("ts:string")
        pipeline.hgetall("ts:hash")
        assert pipeline.execute() == [b"1", {b"a": b"1"}]
        assert _denied(dashboard, ["GET", "other:key"])


def test_the_dashboard_listens_to_our_channels_only_and_says_nothing(bus_urls: Mapping[str, str]) -> None:
    with plain_client(bus_urls["dashboard"]) as dashboard, plain_client(bus_urls["trainer"]) as trainer:
        listener = dashboard.pubsub()
        listener.subscribe("ts:status")
        assert listener.get_message(timeout=2.0)
        trainer.publish("ts:status", "hello")
        message = listener.get_message(timeout=2.0)
        assert message is not None
        assert message["data"] == b"hello"
        listener.close()
        assert _denied(dashboard, ["PUBLISH", "ts:status", "x"])
        assert _denied(dashboard, ["SUBSCRIBE", "rq:pubsub:worker"])


def test_nobody_can_command_rqs_workers(bus_urls: Mapping[str, str]) -> None:
    for user in USERS:
        with plain_client(bus_urls[user]) as client:
            assert _denied(client, ["PUBLISH", "rq:pubsub:worker", '{"command": "shutdown"}']), user


def test_the_command_line_writes_our_keys_and_only_reads_rqs(bus_urls: Mapping[str, str]) -> None:
    with plain_client(bus_urls["trainer"]) as trainer:
        trainer.rpush("rq:queue:gpu", "job")
    with plain_client(bus_urls["submitter"]) as submitter:
        with submitter.pipeline() as transaction:
            transaction.watch("ts:job:a")
            transaction.multi()
            transaction.hset("ts:job:a", mapping={"state": "queued"})
            transaction.xadd("ts:events", {"a": "1"})
            transaction.execute()
        assert submitter.lrange("rq:queue:gpu", 0, -1) == [b"job"]
        for words in (["LPUSH", "rq:queue:gpu", "x"], ["HSET", "rq:job:x", "data", "x"], ["DEL", "rq:queue:gpu"]):
            assert _denied(submitter, words), words
        assert _denied(submitter, ["RENAME", "ts:job:a", "rq:job:x"])


@pytest.mark.parametrize("user", ["supervisor", "trainer"])
def test_services_have_what_the_bus_uses(bus_urls: Mapping[str, str], user: str) -> None:
    with plain_client(bus_urls[user]) as client:
        assert client.set("ts:lease", "me", nx=True, px=5000)
        assert client.set("ts:lease", "me", xx=True, px=5000)
        client.rpush("rq:queue:a", "1", "2")
        assert client.blmove("rq:queue:a", "rq:queue:a:intermediate", 1) == b"1"
        assert client.lrem("rq:queue:a:intermediate", 1, "1") == 1
        client.zadd("ts:deadlines", {"a": 1.0})
        assert client.zrangebyscore("ts:deadlines", 0, 2) == [b"a"]
        assert client.xadd("ts:m", {"a": "1"}, id="1-5") == b"1-5"
        assert client.xtrim("ts:m", maxlen=0) == 1
        assert client.expire("ts:m", 10)
        assert client.persist("ts:m")
        assert client.unlink("ts:m") == 1
        assert client.info("server")["redis_version"]
        assert client.client_setname("worker")
        assert client.client_info()["name"] == "worker"
        assert client.publish("ts:control:a", "x") == 0


def test_a_stale_stream_id_is_refused_by_the_server(bus_urls: Mapping[str, str]) -> None:
    with plain_client(bus_urls["trainer"]) as client:
        client.xadd("ts:m", {"a": "1"}, id="2-0")
        with pytest.raises(ResponseError, match="equal or smaller"):
            client.xadd("ts:m", {"a": "1"}, id="1-9")


def test_the_admin_asks_how_the_server_is_and_reads_no_job(bus_urls: Mapping[str, str]) -> None:
    with plain_client(bus_urls["trainer"]) as trainer:
        trainer.set("ts:secret", "1")
    with plain_client(bus_urls["admin"]) as admin:
        assert admin.info("persistence")["aof_enabled"] == 1
        assert _denied(admin, ["GET", "ts:secret"])
        assert admin.acl_log() is not None


def test_nobody_gets_in_without_a_password_or_as_the_default_user(redis_server: EmbeddedServer) -> None:
    with redis.Redis(host="127.0.0.1", port=redis_server.port or 0) as anonymous, pytest.raises(AuthenticationError):
        anonymous.ping()
    for user in ("default", "trainer"):
        url = f"redis://{user}:guess@127.0.0.1:{redis_server.port}/0"
        with plain_client(url) as guess, pytest.raises(AuthenticationError):
            guess.ping()
