"""The records of slots and of their circuit breakers: read here, and written nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from trackside.bus import keys, streams
from trackside.bus.client import Pipeline, WatchError
from trackside.codec import decode_fields, encode_fields
from trackside.errors import NotFound
from trackside.models import Breaker, Event, EventKind, Slot
from trackside.records import Records, decoded, replace_hash

T = TypeVar("T")


class SlotStore(Records):
    """Slots and their circuit breakers on the bus."""

    def slots(self) -> list[Slot]:
        """Every registered slot, by id."""
        ids = sorted(raw.decode() for raw in cast(set[bytes], self.client.smembers(keys.SLOTS)))
        return decoded(Slot, self.hashes(keys.slot(slot_id) for slot_id in ids))

    def slot(self, slot_id: str) -> Slot:
        """The slot's record; raises NotFound."""
        raw = cast(dict[bytes, bytes], self.client.hgetall(keys.slot(slot_id)))
        if not raw:
            raise NotFound(f"no slot {slot_id!r}: `trackside slots` lists them", slot=slot_id)
        return decode_fields(Slot, raw)

    def breakers(self, slot_ids: Iterable[str]) -> dict[str, Breaker]:
        """The circuit breakers of these slots that are not simply closed, by slot."""
        found = decoded(Breaker, self.hashes(keys.breaker(slot_id) for slot_id in slot_ids))
        return {breaker.slot: breaker for breaker in found}

    def register_slot(self, slot: Slot) -> None:
        """Write a slot's record; what people set on it (cordoned) stays."""
        key = keys.slot(slot.id)

        def turn(pipe: Pipeline) -> None:
            raw, now = self.look(pipe, key, ("HGETALL", key))
            known = decode_fields(Slot, raw) if raw else slot
            record = replace(slot, registered_at_ms=now, cordoned=known.cordoned, cordon_reason=known.cordon_reason)
            pipe.multi()
            replace_hash(pipe, key, record)
            pipe.sadd(keys.SLOTS, slot.id)
            pipe.execute()

        self._change_slot(turn, slot.id)

    def retire_slot(self, slot_id: str) -> None:
        """Take a slot off the books at an orderly stop; that it is cordoned is remembered for its return."""
        key = keys.slot(slot_id)

        def turn(pipe: Pipeline) -> None:
            (flag,) = pipe.look([key], ("HGET", key, "cordoned"))
            pipe.multi()
            if flag != b"true":
                pipe.delete(key)
            pipe.srem(keys.SLOTS, slot_id)
            pipe.execute()

        self._change_slot(turn, slot_id)

    def cordon(self, slot_id: str, *, cordoned: bool, why: str | None = None) -> Slot:
        """Take a slot out of service for new work, or put it back, which also closes its breaker; asked again: nothing.

        What runs on it is not touched. `why`: of an agent that does it for a broken GPU. Raises NotFound.
        """
        key, breaker = keys.slot(slot_id), keys.breaker(slot_id)

        def turn(pipe: Pipeline) -> Slot:
            raw, there, now = self.look(pipe, key, ("HGETALL", key), ("EXISTS", breaker), beside=(breaker,))
            if not raw:
                raise NotFound(f"no slot {slot_id!r}: `trackside slots` lists them", slot=slot_id)
            slot, broken = decode_fields(Slot, raw), there and not cordoned
            if slot.cordoned is cordoned and not broken:
                return slot
            new = replace(slot, cordoned=cordoned, cordon_reason=why)
            pipe.multi()
            pipe.hset(key, mapping=cast(Any, encode_fields(new)))
            if why is None:
                pipe.hdel(key, "cordon_reason")
            if broken:
                pipe.delete(breaker)
            cause = "cordoned" if cordoned else "uncordoned"
            streams.append_event(pipe, self.slot_event(slot_id, now, cause=cause, why=why))
            pipe.execute()
            return new

        return self._change_slot(turn, slot_id)

    def tell_gpu(
        self, slot_id: str, *, blocked: str | None, throttled: str | None, events: Iterable[tuple[str, dict[str, Any]]]
    ) -> None:
        """Write what is wrong with a slot's GPU, and the events about it (cause and data); of no such slot: nothing.

        The fields have one writer, the slot's agent, and what people set on the slot is not touched.
        """
        key, causes = keys.slot(slot_id), list(events)

        def turn(pipe: Pipeline) -> None:
            exists, now = self.look(pipe, key, ("EXISTS", key))
            if not exists:
                return
            pipe.multi()
            for name, words in (("blocked", blocked), ("throttled", throttled)):
                if words is None:
                    pipe.hdel(key, name)
                else:
                    pipe.hset(key, name, words)
            for cause, data in causes:
                streams.append_event(pipe, self.slot_event(slot_id, now, cause=cause, **data))
            pipe.execute()

        self._change_slot(turn, slot_id)

    def _change_slot(self, turn: Callable[[Pipeline], T], slot_id: str) -> T:
        return self.until_undisturbed(turn, f"slot {slot_id!r}", slot=slot_id)

    def slot_event(self, slot_id: str, now: int, *, cause: str, **data: Any) -> Event:
        """An event about a slot."""
        facts = {name: value for name, value in data.items() if value is not None}
        return Event(kind=EventKind.SLOT, at_ms=now, cause=cause, by=self._by, data={"slot": slot_id, **facts})

    def write_breaker(self, pipe: Pipeline, breaker: Breaker) -> None:
        """Put a breaker's record into the transaction that `pipe` has open; a closed one needs none."""
        if breaker == Breaker(slot=breaker.slot):
            pipe.delete(keys.breaker(breaker.slot))
        else:
            replace_hash(pipe, keys.breaker(breaker.slot), breaker)

    def move_breaker(self, old: Breaker | None, new: Breaker, *, cause: str, **data: Any) -> bool:
        """Write a breaker that still is `old`, with its event; returns whether it was."""
        key = keys.breaker(new.slot)
        with self.client.pipeline() as pipe:
            raw, now = self.look(pipe, key, ("HGETALL", key))
            if (decode_fields(Breaker, raw) if raw else None) != old:
                return False
            pipe.multi()
            self.write_breaker(pipe, new)
            streams.append_event(pipe, self.slot_event(new.slot, now, cause=cause, **data))
            try:
                pipe.execute()
            except WatchError:
                return False
        return True
