"""Connections to the Redis server, with short limits of our own and our own errors.

redis-py's defaults (5 s, ten tries of every command) stall for most of a minute when a server freezes, and send a
write again whose reply was lost. Here a command gets one try and a short limit; whoever calls knows what is safe to
repeat. Errors of the connection come out as BusUnavailable, refusals as BusDenied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.client import Pipeline as RedisPipeline
from redis.retry import Retry

from trackside.config import Settings
from trackside.errors import BusDenied, BusError, BusUnavailable, ConfigurationError

WatchError = redis.WatchError
ResponseError = redis.ResponseError
CONNECT_LIMIT_S: Final = 1.0
COMMAND_LIMIT_S: Final = 2.0  # longer than any block we ask for, shorter than a heartbeat's TTL


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
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise BusUnavailable(f"no answer from the server: {error}; is `trackside up` running?") from error
    except redis.exceptions.OutOfMemoryError as error:
        raise BusUnavailable(f"the server is out of memory: {error}; raise its maxmemory or remove old jobs") from error
    except redis.ResponseError as error:
        if str(error).startswith(("NOPERM", "NOAUTH", "WRONGPASS")):
            raise BusDenied(f"the server refused this user: {error}") from error
        if str(error).startswith(("MISCONF", "READONLY", "LOADING", "MASTERDOWN")):
            raise BusUnavailable(f"the server takes no writes: {error}") from error
        raise
    except redis.RedisError as error:
        raise BusError(f"the server answered: {error}") from error


class Pipeline(RedisPipeline):
    """A pipeline whose errors are ours."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        with bus_errors():
            return super().execute(raise_on_error)

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            with bus_errors():
                return super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's own
        except redis.WatchError as error:
            # redis-py says so of a connection that breaks between WATCH and EXEC: no other writer won, nobody answers.
            raise BusUnavailable(f"the connection broke in the middle of a change: {error}; try again") from error

    def __enter__(self) -> Pipeline:
        return self

    def watch(self, *names: Any) -> Any:
        return super().watch(*names)  # type: ignore[no-untyped-call]  # redis-py's own


class Client(redis.Redis):
    """A Redis client whose errors are ours, and which never repeats a command by itself."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        with bus_errors():
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's own

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
        return cast(
            Client,
            Client.from_url(
                url,
                socket_timeout=command_limit_s,
                socket_connect_timeout=CONNECT_LIMIT_S,
                retry=Retry(NoBackoff(), 0),
                client_name=name,
            ),
        )
    except ValueError as error:
        raise ConfigurationError(
            f"TRACKSIDE_REDIS_URL cannot be used: {error}", setting="TRACKSIDE_REDIS_URL"
        ) from error


def now_ms(client: Client | Pipeline) -> int:
    """The server's time in milliseconds since the epoch."""
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000
