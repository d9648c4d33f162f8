"""How any record on the bus is read, and the one way in which it is changed.

1. `look` begins a change: the record's key is watched, and the leader's lease with it where the writer holds one; the
   record, the lease's owner and the server's time come in one round trip.
2. The change is decided from what was read, and written in one MULTI/EXEC. The server refuses it where the record or
   the lease has changed meanwhile, so whoever was paused past the lease writes nothing, however late it wakes.
3. `until_undisturbed` begins anew after a refusal, up to a bound. Nothing is locked, so nobody waits for one who died.

What the records of slots, jobs and attempts are and how they may change is said by the stores above this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar, cast

from trackside.bus.client import Client, Pipeline, WatchError
from trackside.bus.leases import Lease
from trackside.codec import decode_fields, encode_fields
from trackside.errors import Conflict, DecodeError

T = TypeVar("T")
_TRIES: Final = 50  # of one optimistic change; each loss means that another writer won


class Records:
    """Records on the bus. `by` names the writer in the history (role:name); `lease`: what each change must hold."""

    def __init__(self, client: Client, *, by: str, lease: Lease | None = None) -> None:
        self.client = client
        self._by = by
        self._lease = lease

    def hashes(self, names: Iterable[str]) -> list[dict[bytes, bytes]]:
        """These hashes as they are, in one round trip."""
        with self.client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(name)
            return cast(list[dict[bytes, bytes]], pipe.execute())

    def look(self, pipe: Pipeline, key: str, *reads: tuple[str, ...], beside: Sequence[str] = ()) -> list[Any]:
        """Begin a change of `key`: what `reads` answer and the server's time in ms, in one round trip.

        `beside`: more keys that nobody may write meanwhile. Raises Conflict where a lease is to be held and is not.
        """
        lease = self._lease
        guard = () if lease is None else (lease.read,)
        watched = (key, *beside) if lease is None else (key, *beside, lease.read[1])
        *answers, (seconds, micros) = pipe.look(watched, *guard, *reads, ("TIME",))
        if lease is not None:
            lease.guard(answers.pop(0))
        return [*answers, seconds * 1000 + micros // 1000]

    def until_undisturbed(self, turn: Callable[[Pipeline], T], what: str, **facts: Any) -> T:
        """Run one optimistic change, which looks, writes and executes, until no other writer comes in between.

        `turn` may run several times. Raises Conflict where somebody always does; `what` and `facts` name the record.
        """
        for _ in range(_TRIES):
            with self.client.pipeline() as pipe:
                try:
                    return turn(pipe)
                except WatchError:
                    continue
        raise Conflict(f"{what} is being written by others without a pause: try again", **facts)


def replace_hash(pipe: Pipeline, key: str, record: Any) -> None:
    """Put a whole record into the transaction that `pipe` has open, and nothing of what stood there."""
    pipe.delete(key)
    pipe.hset(key, mapping=cast(Any, encode_fields(record)))


def decoded(kind: type[T], hashes: list[dict[bytes, bytes]]) -> list[T]:
    """The records in these hashes; one that is gone or cannot be read is left out."""
    found: list[T] = []
    for raw in hashes:
        if raw:
            try:
                found.append(decode_fields(kind, raw))
            except DecodeError:
                continue
    return found
