"""The lease of the leading supervisor: one leads, the others watch, and a stale one's acts are refused.

The lease is a key with a TTL that holds its owner's token. Every act of a supervisor watches that key in the same
transaction, so one that was paused past its lease finds its transaction refused, however late it wakes.

The token says which process on which machine holds the lease, so a successor on that machine that sees the holder
gone need not wait for the TTL. A wrong guess could only unseat a leader, never let two act.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from trackside.bus import keys
from trackside.bus.client import Client, WatchError
from trackside.errors import Conflict
from trackside.retry import at_once

_TRIES: Final = 2  # a connection that breaks in the write looks like another writer


class Lease:
    """The leader's lease as one process holds it, or tries to."""

    read: Final = ("GET", keys.LEADER)

    def __init__(self, client: Client, owner: str, ttl_s: float) -> None:
        self._client = client
        self._ttl_ms = int(ttl_s * 1000)
        self._token = f"{owner} {machine()} {os.getpid()} {secrets.token_hex(8)}".encode()
        self.held = False

    def hold(self) -> bool:
        """Take the lease if it is free, renew it if it is ours; returns whether it is ours now."""
        self.held = (self.held and at_once(self._renew)) or any(at_once(self._take) for _ in range(_TRIES))
        return self.held

    def _renew(self) -> bool:
        """In one round trip. Should another hold it by now, its time is lengthened this once, which harms nobody."""
        with self._client.pipeline() as pipe:
            pipe.get(keys.LEADER)
            pipe.pexpire(keys.LEADER, self._ttl_ms)
            owner, _ = pipe.execute()
        return bool(owner == self._token)

    def _take(self) -> bool:
        with self._client.pipeline() as pipe:
            (owner,) = pipe.look([keys.LEADER], self.read)
            if owner not in (None, self._token) and not _holder_is_gone(owner):
                return False
            pipe.multi()
            pipe.set(keys.LEADER, self._token, px=self._ttl_ms)
            try:
                pipe.execute()
            except WatchError:
                return False
        return True

    def guard(self, owner: bytes | None) -> None:
        """Raise Conflict unless `owner`, the answer to `read` in a transaction that watches the key, is this process.

        The transaction is then valid only while the lease is ours.
        """
        if owner != self._token:
            self.held = False
            raise Conflict("another supervisor leads now; this one goes on watching")

    def release(self) -> None:
        """Give the lease back at an orderly stop, so that the next leader need not wait."""
        with self._client.pipeline() as pipe:
            (owner,) = pipe.look([keys.LEADER], self.read)
            if owner == self._token:
                pipe.multi()
                pipe.delete(keys.LEADER)
                try:
                    pipe.execute()
                except WatchError:
                    return
        self.held = False


def machine() -> str:
    """This boot of this machine and this process namespace: where a process id means one process."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _holder_is_gone(token: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    parts = token.decode("utf-8", "replace").split(" ")
    if len(parts) != 4 or parts[1] != machine() or not parts[2].isdecimal():
        return False
    try:
        os.kill(int(parts[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
