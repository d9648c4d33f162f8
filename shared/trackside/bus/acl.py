"""Who may do what on the server: one Redis user per service, each with the least that it needs.

    user        keys                   may
    admin       none                   ask the server how it is, and stop it; reads no job, changes no rule
    supervisor  rq:*  ts:*             read and write records, streams and queues
    trainer     rq:*  ts:*             the same: it carries attempts, and RQ's own bookkeeping is its
    submitter   ts:*, rq:* to read     submit, cancel, list: the command line
    dashboard   rq:*  ts:* to read     read, listen, ask the server how it is; nothing that writes, publishes or
                                       touches a client
    operator    rq:* to read           what `rq info` needs and nothing else

Channels are `ts:*` only: RQ's own `rq:pubsub:*`, by which anybody could stop a worker, is open to nobody. Scripting,
`KEYS`, `SCAN`, `CONFIG` and whatever else the server calls dangerous is open to nobody either, but for `INFO`.

A server refuses a whole user for one command name that it does not know, so rules are built from the server's version.
Only the standard library is imported here: a deployment's files are made from this module without an installation.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SERVICE_USERS: Final = ("supervisor", "trainer", "submitter", "dashboard", "operator")
USERS: Final = ("admin", *SERVICE_USERS)

_OLDEST: Final = (6, 2, 0)  # explicit stream ids with NOMKSTREAM, LMOVE and channel permissions

# Commands that no user may run under any rule; the embedded server does without their names altogether. PF* had an
# out-of-bounds write (CVE-2025-32023), RESTORE a memory error (CVE-2026-25243), the scripting ones several.
UNUSED_COMMANDS: Final = (
    *("EVAL", "EVALSHA", "SCRIPT", "CONFIG", "DEBUG", "MODULE", "REPLICAOF", "SLAVEOF", "SYNC", "PSYNC", "MIGRATE"),
    *("RESTORE", "RESTORE-ASKING", "DUMP", "KEYS", "MONITOR", "SWAPDB", "SORT", "PSUBSCRIBE"),
    *("PFADD", "PFCOUNT", "PFMERGE", "PFDEBUG", "PFSELFTEST"),
)
_UNUSED_COMMANDS_7_0: Final = ("EVAL_RO", "EVALSHA_RO", "FUNCTION", "FCALL", "FCALL_RO", "SORT_RO")

# `client|setname` and the like carry what `CLIENT LIST` shows; they reach no other client.
_CONNECTION: Final = ("hello", "auth", "ping", "select", "reset", "client|setname", "client|getname", "client|id")
_CONNECTION_7_2: Final = ("client|setinfo",)

_READ: Final = (
    *("exists", "type", "ttl", "pttl", "get", "getrange", "mget", "strlen"),
    *("hget", "hmget", "hgetall", "hlen", "hexists", "hkeys", "hvals"),
    *("llen", "lrange", "lindex", "lpos", "smembers", "scard", "sismember", "smismember"),
    *("zrange", "zrangebyscore", "zrevrange", "zrevrangebyscore", "zcard", "zscore", "zmscore", "zcount"),
    *("zrank", "zrevrank", "xread", "xrange", "xrevrange", "xlen", "time"),
)
_READ_7_0: Final = ("xinfo|stream",)  # 6.2 takes only the whole of XINFO, consumer groups included

_WRITE: Final = (
    *("set", "mset", "append", "incr", "incrby", "decr", "decrby", "incrbyfloat"),
    *("hset", "hsetnx", "hdel", "hincrby", "hincrbyfloat"),
    *("lpush", "rpush", "lpop", "rpop", "lrem", "ltrim", "lset", "linsert", "lmove", "blmove", "blpop", "brpop"),
    *("sadd", "srem", "smove", "zadd", "zrem", "zincrby", "zpopmin", "zremrangebyscore", "zremrangebyrank"),
    *("xadd", "xdel", "xtrim", "del", "unlink", "rename"),
    *("expire", "pexpire", "expireat", "pexpireat", "persist"),
)
_TRANSACTION: Final = ("watch", "unwatch", "multi", "exec", "discard")
_LISTEN: Final = ("subscribe", "unsubscribe")
_SAY: Final = ("publish",)
_SERVER_VERSION: Final = ("info", "client|info")  # RQ reads the version from INFO, its own address from CLIENT INFO
_SERVER_HEALTH: Final = ("info",)  # whether it refuses to write: who may not write finds out no other way

_RQ_INFO: Final = ("smembers", "exists", "hgetall", "llen", "zcard", "zrange", "zrangebyscore", "multi", "exec")
_ADMIN: Final = (
    *("info", "time", "dbsize", "shutdown", "config|get", "client|list", "client|info", "memory|stats"),
    *("acl|whoami", "acl|list", "acl|users", "acl|log", "slowlog|get", "slowlog|len"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerVersion:
    """What the server is; `version` is its own number, not the Redis version that Valkey claims to speak."""

    flavour: str  # redis | valkey
    version: tuple[int, int, int]

    @property
    def redis_level(self) -> tuple[int, int, int]:
        """The Redis version whose commands and rules this server has; Valkey began as Redis 7.2.4."""
        return max(self.version, (7, 2, 4)) if self.flavour == "valkey" else self.version

    @property
    def usable(self) -> bool:
        """Whether Trackside runs on it."""
        return self.redis_level >= _OLDEST

    @property
    def has_key_permissions(self) -> bool:
        """Whether rules can open a key for reading only, and give commands keys of their own (selectors)."""
        return self.redis_level >= (7, 0, 0)

    def __str__(self) -> str:
        return f"{self.flavour} {'.'.join(map(str, self.version))}"


def parse_version(text: str) -> ServerVersion | None:
    """Read what `redis-server --version` or `valkey-server --version` prints; None if it is neither."""
    found = re.search(r"\b(redis|valkey)\b.*?\bv=(\d+)\.(\d+)\.(\d+)", text, re.IGNORECASE)
    if found is None:
        return None
    flavour, major, minor, patch = found.groups()
    return ServerVersion(flavour=flavour.lower(), version=(int(major), int(minor), int(patch)))


def unused_commands(server: ServerVersion) -> tuple[str, ...]:
    """The names that the embedded server drops."""
    return UNUSED_COMMANDS + (_UNUSED_COMMANDS_7_0 if server.redis_level >= (7, 0, 0) else ())


def rules(user: str, server: ServerVersion) -> list[str]:
    """The rules of one user, without password and on/off, in the order in which the server applies them."""
    closed = ["resetkeys", "resetchannels", "-@all"]
    connection = _CONNECTION + (_CONNECTION_7_2 if server.redis_level >= (7, 2, 0) else ())
    read = _READ + (_READ_7_0 if server.redis_level >= (7, 0, 0) else ())
    read_only = "%R~" if server.has_key_permissions else "~"  # on 6.2 the commands alone must hold
    match user:
        case "admin":
            return [*closed, *_allow(connection, _ADMIN)]
        case "supervisor" | "trainer":
            commands = _allow(connection, read, _WRITE, _TRANSACTION, _LISTEN, _SAY, _SERVER_VERSION)
            return [*closed, "~rq:*", "~ts:*", "&ts:*", *commands]
        case "submitter":
            commands = _allow(connection, read, _WRITE, _TRANSACTION, _LISTEN, _SAY)
            if server.has_key_permissions:
                return [*closed, "~ts:*", "%R~rq:*", "&ts:*", *commands]
            return [*closed, "~ts:*", "&ts:*", *commands]  # 6.2 cannot open rq:* for reading alone
        case "dashboard":
            return [
                *closed,
                f"{read_only}rq:*",
                f"{read_only}ts:*",
                "&ts:*",
                *_allow(connection, read, _LISTEN, _SERVER_HEALTH),
            ]
        case "operator":
            return [*closed, f"{read_only}rq:*", *_allow(connection, _RQ_INFO), *_rq_info_cleanup(server)]
    raise ValueError(f"no rules for user {user!r}: one of {', '.join(USERS)}")


def _rq_info_cleanup(server: ServerVersion) -> list[str]:
    """`rq info` cleans as it lists: old results out of two registries, dead names out of the set of workers."""
    if server.has_key_permissions:
        return ["(~rq:finished:* ~rq:failed:* +zremrangebyscore)", "(~rq:workers ~rq:workers:* +srem)"]
    return ["+zremrangebyscore", "+srem"]


def _allow(*groups: Sequence[str]) -> list[str]:
    return [f"+{name}" for group in groups for name in group]


def new_password() -> str:
    """32 random bytes, in letters that need no quoting in a URL."""
    return secrets.token_urlsafe(32)


def user_line(user: str, password: str, rules_: Sequence[str]) -> str:
    """A line for a server's configuration or ACL file; it holds the password's digest, never the password."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return " ".join(["user", user, "on", f"#{digest}", *rules_])


def acl_lines(
    server: ServerVersion, passwords: Mapping[str, str], extra: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """All users of a server: the default one off, ours, and `extra` (user to rules) after them."""
    given = {user: rules(user, server) for user in USERS} | dict(extra or {})
    closed = "user default off resetpass resetkeys resetchannels -@all"
    return [closed, *(user_line(user, passwords[user], wanted) for user, wanted in given.items())]
