"""Connections to the Redis server, with short limits of our own and our own errors.

redis-py's defaults (5 s, ten tries of every command) stall for most of a minute when a server freezes, and send a
write again whose reply was lost. Here a command gets one try and a short limit; whoever calls knows what is safe to
repeat. Errors of the connection come out as BusUnavailable, refusals as BusDenied.

On a bad line every round trip is a risk, so there are few: a connection greets in one (redis-py's own greeting takes
four), a change looks in one and writes in another, and a read that a broken connection cost is asked again at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline as RedisPipeline
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from trackside.bus import keys
from trackside.config import Settings
from trackside.errors import BusDenied, BusError, BusUnavailable, ConfigurationError
from trackside.retry import at_once

WatchError = redis.WatchError
ResponseError = redis.ResponseError
CONNECT_LIMIT_S: Final = 1.0
COMMAND_LIMIT_S: Final = 2.0  # longer than any block we ask for, shorter than a heartbeat's TTL
_AWAY: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
# Asked again at once when the connection breaks: whatever changes nothing.
_READS: Final = frozenset({
    *("EXISTS", "GET", "GETRANGE", "HGET", "HGETALL", "LLEN", "LRANGE", "MGET", "SMEMBERS", "TIME", "XLEN", "XRANGE"),
    *("XREAD", "XREVRANGE", "ZCARD", "ZRANGE", "ZREVRANGE", "ZSCORE"),
})  # fmt: skip


@contextmanager
def bus_errors() -> Iterator[None]:
    """Turn redis-py's errors into ours; a WatchError passes, since the caller repeats on it."""
    try:
        yield
    except redis.WatchError:
        raise
    except (redis.exceptions.NoPermissionError, redis.exceptions.AuthenticationError) as error:
        raise BusDenied(
            f"the server refused this user: {error}; check the password file and the user's rules"
        ) from error
    except redis.exceptions.BusyLoadingError as error:
        raise BusUnavailable("the server is still loading its data; wait a moment and try again") from error
    except _AWAY as error:
        # Nobody listens there: asking again at once would only add to the storm when the server is back.
        refused = isinstance(error.__context__ or error, ConnectionRefusedError | FileNotFoundError)
        raise BusUnavailable(
            f"no answer from the server: {error}; is `trackside up` running?", refused=refused
        ) from error
    except redis.exceptions.OutOfMemoryError as error:
        raise BusUnavailable(
            "the server is out of memory and takes no writes; what trains goes on: raise its maxmemory "
            f"({_told(error)})", full="memory",
        ) from error  # fmt: skip
    except (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError) as error:
        raise BusUnavailable(f"the server takes no writes: {error}; connect to the one that does") from error
    except redis.ResponseError as error:
        told = _told(error)
        if told.startswith(("NOPERM", "NOAUTH", "WRONGPASS")):
            raise BusDenied(f"the server refused this user: {told}") from error
        if told.startswith("MISCONF"):
            raise BusUnavailable(
                "the server cannot write to its disk and takes no writes; what trains goes on: free space there, "
                f"and see its log ({told})", full="disk",
            ) from error  # fmt: skip
        if told.startswith(("READONLY", "LOADING", "MASTERDOWN")):
            raise BusUnavailable(
                f"the server takes no writes: {told}; wait, or connect to the one that does"
            ) from error
        raise
    except redis.RedisError as error:
        raise BusError(f"the server answered: {error}") from error


def _told(error: Exception) -> str:
    """The server's own words; redis-py puts its own before them where a pipeline failed."""
    return str(error).rpartition("caused error: ")[2]


class Pipeline(RedisPipeline):
    """A pipeline whose errors are ours."""

    # What a signal raises within a destructor is lost, a Ctrl-C for instance, and a command that looks again and again
    # destroys pipelines all the time. `with` has tidied up before, so this does nothing, and no handler runs in it.
    __del__ = object.__init__

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack = list(self.command_stack)
        if cast(Any, self).transaction or self.watching or any(args[0] not in _READS for args, _ in stack):
            return self._execute(raise_on_error)

        def read() -> list[Any]:
            self.command_stack = list(stack)  # redis-py empties it with each try
            return self._execute(raise_on_error)

        return at_once(read)

    def _execute(self, raise_on_error: bool) -> list[Any]:
        with bus_errors():
            return super().execute(raise_on_error)

    def look(self, watched: Sequence[str], *reads: tuple[str, ...]) -> list[Any]:
        """WATCH these keys and read under it, in one round trip: the answers to `reads`."""
        commands = [("WATCH", *watched), *reads]
        with bus_errors():
            connection: Any = self.connection or self.connection_pool.get_connection()
            self.connection = connection
            try:
                connection.send_packed_command(connection.pack_commands(commands))
                answers = [self._answer(connection, command[0]) for command in commands]
            except _AWAY:
                self.watching = False
                connection.disconnect()
                raise
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers[1:]

    def _answer(self, connection: Any, command: str) -> Any:
        try:
            return self.parse_response(connection, command)  # type: ignore[no-untyped-call]  # redis-py's own
        except redis.ResponseError as error:  # the answers behind it are still to be read
            return error

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            with bus_errors():
                return super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's own
        except redis.WatchError as error:
            # redis-py says so of a connection that breaks between WATCH and EXEC: no other writer won, nobody answers.
            raise BusUnavailable(f"the connection broke in the middle of a change: {error}; try again") from error

    def reset(self) -> None:  # type: ignore[override]  # redis-py's own differs from its base in the same way
        """Let go of the connection; whatever happens to it, the caller's own result stands."""
        connection: Any = self.connection
        if self.watching and connection is not None and connection.is_connected:  # a new one would watch nothing
            try:
                with bus_errors():
                    connection.send_command("UNWATCH")
                    connection.read_response()
            except (BusError, redis.ResponseError):
                connection.disconnect()  # which forgets what was watched, too
        self.watching = False
        super().reset()

    def __enter__(self) -> Pipeline:
        return self

    def watch(self, *names: Any) -> Any:
        return super().watch(*names)  # type: ignore[no-untyped-call]  # redis-py's own


class Connections:
    """Counts the connections of a client: behind each new one another server may answer, or the same with older data.

    redis-py opens a connection anew without a word when it finds that the old one was closed, so a server that was
    replaced between two commands shows in no error. Whoever remembers something about the server looks here.
    """

    def __init__(self, pool: Any) -> None:
        self.made = 0
        self._pool = pool
        greet = pool.connection_kwargs["redis_connect_func"]

        def connected(connection: Any) -> None:
            self.made += 1
            greet(connection)

        pool.connection_kwargs["redis_connect_func"] = connected

    def settle(self) -> int:
        """See that the connection which the next command takes still stands, or make it; the count. No round trip."""
        with bus_errors():
            self._pool.release(self._pool.get_connection())
        return self.made


class Client(redis.Redis):
    """A Redis client whose errors are ours, and which repeats nothing but what only reads."""

    connections: Connections

    # The server's clock less this host's time since boot, as the last answer said that told it.
    server_ahead_ms: int | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        def ask() -> Any:
            with bus_errors():
                return super(Client, self).execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's own

        return at_once(ask) if args[0] in _READS else ask()

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Pipeline:
        return Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def service_url(settings: Settings) -> str:
    """The URL to connect to, the password filled in from its file; raises ConfigurationError if there is none."""
    if settings.redis_url is None:
        raise ConfigurationError(
            "no server is known: run `trackside up`, or set TRACKSIDE_REDIS_URL", setting="TRACKSIDE_REDIS_URL"
        )
    if settings.redis_password_file is None:
        return settings.redis_url
    try:
        password = settings.redis_password_file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"TRACKSIDE_REDIS_PASSWORD_FILE cannot be read: {error}", setting="TRACKSIDE_REDIS_PASSWORD_FILE"
        ) from error
    return with_password(settings.redis_url, password)


def with_password(url: str, password: str) -> str:
    """`url` with its password replaced."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(password, safe='')}@{host}"))


def without_password(url: str) -> str:
    """`url` fit for a log or a screen."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}"))


def connect(url: str, *, name: str | None = None, command_limit_s: float = COMMAND_LIMIT_S) -> Client:
    """A client for `url` (redis://, rediss:// or unix://); opens no connection yet."""
    try:
        client = cast(Client, Client.from_url(url, **options(name, command_limit_s)))
    except ValueError as error:
        raise ConfigurationError(
            f"TRACKSIDE_REDIS_URL cannot be used: {error}", setting="TRACKSIDE_REDIS_URL"
        ) from error
    client.connections = Connections(client.connection_pool)
    return client


def options(name: str | None, command_limit_s: float) -> dict[str, Any]:
    """What every connection of ours is opened with, RQ's own too."""
    return {
        "socket_timeout": command_limit_s,
        "socket_connect_timeout": CONNECT_LIMIT_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # its answers have one shape in every redis-py
        "redis_connect_func": partial(_greet, name),
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _greet(name: str | None, connection: Any) -> None:
    """Log in, say who we are and choose the database, in one round trip."""
    connection._parser.on_connect(connection)
    auth = ("AUTH", connection.username or "default", connection.password) if connection.password else ()
    commands: list[tuple[Any, ...]] = [("HELLO", 2, *auth, *(("SETNAME", name) if name else ()))]
    if connection.db:
        commands.append(("SELECT", connection.db))
    connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    for _ in commands:
        connection.handshake_metadata = connection.read_response()


def check_writes(client: Client) -> None:
    """Raise BusUnavailable if the server takes no writes; changes nothing, for the stream is never made."""
    client.xadd(keys.PROBE, {"probe": ""}, nomkstream=True)


def now_ms(client: Client | Pipeline) -> int:
    """The server's time in milliseconds since the epoch."""
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000
