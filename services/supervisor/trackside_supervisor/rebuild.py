"""Writes the records of a server that has less than the ledger back to it: jobs first, then slots and breakers.

Job by job, each in one guarded transaction, and a job that lacks nothing is left as it is. So whoever dies in the
middle, the next leader begins again and finds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

from trackside import logs
from trackside.bus import keys, streams
from trackside.bus.client import Client, Pipeline
from trackside.codec import decode_fields
from trackside.errors import Conflict, DecodeError, IllegalTransition, NotFound
from trackside.models import Breaker, Event, EventKind, Slot
from trackside.records import replace_hash
from trackside.restoring import Held, Written, put_back
from trackside.store import Store
from trackside_supervisor import older
from trackside_supervisor.crashpoints import here
from trackside_supervisor.ledger import Kept, Ledger

BEGUN: Final = "server came back older"
REBUILT: Final = "records rebuilt"
_BEGUN_TEXT: Final = "the server has less than it had: the records are rebuilt from the supervisor's ledger"
_CORDONS: Final = ("cordoned", "uncordoned")  # what people have asked of a slot since
_PAGE: Final = 500


class Rebuild:
    """One rebuild from an open ledger. `renew` keeps the lease meanwhile; False: it is lost."""

    def __init__(self, client: Client, store: Store, ledger: Ledger, renew: Callable[[], bool]) -> None:
        self._client, self._store, self._ledger, self._renew = client, store, ledger, renew
        self._log = logs.get()

    def run(self, look: older.Look) -> None:
        """Write back all that the server lacks, as `look` has shown. Raises Conflict when the lease is lost."""
        ledger = self._ledger
        self._log.error("server_is_older", seen=ledger.cursor, jobs=len(ledger.jobs))
        self._store.tell(BEGUN, level="error", text=_BEGUN_TEXT, inputs=look.inputs())
        here("before rebuild")
        rebuilt = 0
        for kept in sorted(ledger.jobs.values(), key=lambda kept: kept.job.created_at_ms):
            if not self._renew():
                raise Conflict("another supervisor leads now, and goes on with the rebuild")
            try:
                rebuilt += self._restore(kept)
            except DecodeError as error:  # of one record, which is no reason to leave all others as they are
                self._log.error("job_not_rebuilt", job=kept.job.id, why=error.message)
            here("rebuilding")
        self._restore_slots()
        here("after rebuild")
        self._log.warning("records_rebuilt", jobs=rebuilt)

    def _restore(self, kept: Kept) -> bool:
        """Write one job back; whether anything was missing."""
        job_id, sha256 = kept.job.id, kept.job.spec.snapshot
        archive = self._snapshot(sha256) if sha256 is not None else None
        if sha256 is not None and archive is not None:
            self._client.set(keys.snapshot(sha256), archive, nx=True)
        ours = Held(job=kept.job, attempts=kept.attempts, history=tuple(kept.history))
        asked: tuple[tuple[str, str], ...] = ()

        def decide(theirs: Held | None, now: int) -> Written | None:
            nonlocal asked
            merged = older.merge(ours, theirs)
            if merged is None:
                return None
            asked = merged.asked
            return Written(held=merged.held, more=(*merged.more, self._told(merged, now)))

        if not put_back(self._store, job_id, decide):
            return False
        self._log.warning("job_rebuilt", job=job_id, attempt=kept.job.attempt)
        self._ask_again(job_id, asked)
        return True

    def _snapshot(self, sha256: str) -> bytes | None:
        try:
            return self._ledger.snapshot(sha256)
        except OSError as error:  # its job's records are worth more
            self._log.error("snapshot_unreadable", sha256=sha256, why=str(error))
            return None

    def _told(self, merged: older.Merged, now: int) -> Event:
        job, gap = merged.held.job, merged.gap
        lost = f"{gap.lost_events} of its {len(merged.held.history)} events"
        had = "without this job" if gap.theirs is None else f"with attempt {gap.theirs} of it and without {lost}"
        text = f"the server came back {had}; the records were rebuilt from the ledger, attempt {job.attempt}"
        return self._store.job_event(
            job, EventKind.NOTE, now, cause=REBUILT, level="warning", text=text, lost_events=gap.lost_events,
            attempts=len(merged.held.attempts), there=gap.theirs, inputs=asdict(gap),
        )  # fmt: skip

    def _ask_again(self, job_id: str, asked: tuple[tuple[str, str], ...]) -> None:
        """What people asked of the job since the server came back, in their own name."""
        for wish, by in asked:
            store = Store(self._client, by=by)
            asks = {older.CANCEL: store.cancel, older.PAUSE: store.pause, older.RESUME: store.resume}
            try:
                asks[wish](job_id)
            except (IllegalTransition, NotFound) as error:
                self._log.warning("request_dropped", job=job_id, asked=wish, why=error.message)

    def _restore_slots(self) -> None:
        """Slots come back by their agents; what people set on them, and their breakers, come back from here."""
        for slot in self._ledger.slots:
            self._restore_slot(slot, listed=True)
        for slot in self._ledger.away:
            self._restore_slot(slot, listed=False)
        for breaker in self._ledger.breakers:
            self._restore_breaker(breaker)

    def _restore_slot(self, slot: Slot, *, listed: bool) -> None:
        """Write a slot where there is none, and its cordon where its agent has registered it before."""
        key = keys.slot(slot.id)

        def turn(pipe: Pipeline) -> None:
            raw, _ = self._store.look(pipe, key, ("HGETALL", key))
            there = decode_fields(Slot, raw) if raw else replace(slot, cordoned=False, cordon_reason=None)
            # Asked while the record is watched: what people say of the slot at this very moment stands too.
            cordon = slot.cordoned and not there.cordoned and slot.id not in self._asked()
            if not cordon and (raw or not listed):
                return
            pipe.multi()
            replace_hash(
                pipe, key, replace(there, cordoned=True, cordon_reason=slot.cordon_reason) if cordon else there
            )
            if listed and not raw:
                pipe.sadd(keys.SLOTS, slot.id)
            pipe.execute()

        self._store.until_undisturbed(turn, key)

    def _asked(self) -> set[Any]:
        """The slots that people have cordoned or uncordoned since the ledger took in the last event."""
        since = streams.read_events(self._client, self._ledger.cursor or "0-0", block_s=0.001, count=_PAGE)
        return {event.data.get("slot") for _, event in since if event is not None and event.cause in _CORDONS}

    def _restore_breaker(self, breaker: Breaker) -> None:
        """Write a breaker where there is none."""
        key = keys.breaker(breaker.slot)

        def turn(pipe: Pipeline) -> None:
            raw, _ = self._store.look(pipe, key, ("HGETALL", key))
            if not raw:
                pipe.multi()
                replace_hash(pipe, key, breaker)
                pipe.execute()

        self._store.until_undisturbed(turn, key)
