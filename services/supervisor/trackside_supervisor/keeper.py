"""Keeps the ledger, and notices when the server has less than it.

`settle` is called before each round of a leader and costs nothing while the connection stands. Behind a new connection
another server may answer, so nothing is done until it has been compared with the ledger: every act of the supervisor
asks `sure` inside of its own transaction.

How far the events were taken in moves on only when a rebuild is done, so whoever dies in the middle of one, the next
leader finds the same thing missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from trackside import logs
from trackside.bus import keys, streams
from trackside.bus.client import Client
from trackside.bus.leases import Lease
from trackside.config import Settings
from trackside.errors import Conflict, NotFound
from trackside.models import Attempt, AttemptState, Breaker, Job, Slot
from trackside.records import decoded
from trackside.restoring import Wanted, held
from trackside.store import Store
from trackside_supervisor import older
from trackside_supervisor.crashpoints import here
from trackside_supervisor.ledger import ENDED_KEPT, Kept, Ledger
from trackside_supervisor.older import Verdict
from trackside_supervisor.rebuild import Rebuild

T = TypeVar("T")
_PAGE: Final = 500
_JOBS_AT_ONCE: Final = 50
_RETRY_S: Final = 5.0


class SureLease(Lease):
    """A lease that lets nothing be written to a server that has not been compared with the ledger."""

    def __init__(self, client: Client, owner: str, ttl_s: float, sure: Callable[[], bool]) -> None:
        super().__init__(client, owner, ttl_s)
        self._sure = sure

    def guard(self, owner: bytes | None) -> None:
        super().guard(owner)
        if not self._sure():
            raise Conflict("the connection is a new one: the server behind it is compared with the ledger first")


class Keeper:
    """The ledger of a leading supervisor. `renew` keeps the lease through long work; False: it is lost."""

    def __init__(self, settings: Settings, client: Client, store: Store, renew: Callable[[], bool]) -> None:
        self._folder = settings.home.absolute() / "ledger"
        self._client, self._store, self._renew = client, store, renew
        self._connections = client.connections
        self._compared = -1  # with the server behind this connection
        self._ledger: Ledger | None = None
        self._new = False
        self._retry_at_s: float | None = None  # after the disk did not take it
        self._log = logs.get()

    @property
    def sure(self) -> bool:
        """Whether the server that answers is the one that was compared with the ledger."""
        return self._compared == self._connections.made

    def forget(self) -> None:
        """Another one leads, and keeps its own ledger from here on."""
        self._compared = -1
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    @property
    def is_new(self) -> bool:
        """Whether there was no ledger here to compare the server with."""
        return self._new

    def settle(self) -> Verdict | None:
        """Make sure that the server has what the ledger has, and the ledger what the server has.

        None: there was nothing new to look at. Raises BusError when the server goes away meanwhile, Conflict when the
        lease does.
        """
        if self._compared == self._connections.settle() and (self._ledger is not None or not self._may_write()):
            self._write_again()
            return None
        try:
            return self._compare()
        except OSError as error:  # it cannot be read either, so there is nothing to compare with
            self._give_up(error)
            self._compared = self._connections.made
            return Verdict.WHOLE
        except BaseException:
            self._compared = -1
            raise

    def _may_write(self) -> bool:
        return self._retry_at_s is None or time.monotonic() >= self._retry_at_s

    def _write_again(self) -> None:
        """Catch up on a disk that did not take the ledger, now and then."""
        ledger = self._ledger
        if ledger is None or ledger.writes or not self._may_write():
            return
        try:
            ledger.write_again()
        except OSError as error:
            self._give_up(error)
            return
        for job in ledger.live():
            self._copy_snapshot(ledger, job.spec.snapshot)
        if self._may_write():  # the disk took those too
            self._retry_at_s = None

    def _opened(self) -> Ledger:
        """The ledger; where the disk takes nothing, as far as it was written: the server is compared all the same."""
        try:
            return Ledger.open(self._folder)
        except OSError as error:
            ledger = Ledger.read(self._folder)
            self._give_up(error)
            return ledger

    def _compare(self) -> Verdict:
        ledger = self._ledger = self._ledger or self._opened()
        look = None
        while look is None or not self.sure:
            self._compared = self._connections.made
            look = self._look(ledger)
        verdict = older.judge(look)
        self._new = ledger.cursor is None
        if verdict is Verdict.OLDER:
            Rebuild(self._client, self._store, ledger, self._renew).run(look)
        if ledger.cursor is None or verdict is not Verdict.WHOLE:  # a replica's clock may give smaller ids than before
            self._take_all(ledger)
        else:  # also where it was open: what a read that was asked again brought was not noted
            self._take_news(ledger)
        if not self.sure:
            raise Conflict("the connection broke while the ledger caught up: the server is compared with it again")
        return verdict

    def _look(self, ledger: Ledger) -> older.Look:
        """One round trip: on a line that breaks often this is asked often."""
        seen, live = ledger.cursor or "0-0", ledger.live()
        with self._client.pipeline(transaction=False) as pipe:
            pipe.xrange(keys.EVENTS, min=seen, max=seen, count=1)
            pipe.xrange(keys.EVENTS, count=1)
            pipe.xlen(keys.EVENTS)
            for job in live:
                pipe.hget(keys.job(job.id), "attempt")
            still, first, events, *there = pipe.execute()
        return older.Look(
            seen=ledger.cursor,
            still_there=bool(still),
            first=first[0][0].decode() if first else None,
            events=events,
            known={job.id: job.attempt for job in live},
            there={job.id: older.number(raw, otherwise=job.attempt) for job, raw in zip(live, there, strict=True)},
        )

    # -- taking in -------------------------------------------------------------------------------------------------

    def cursor(self) -> str:
        """How far events have been taken in."""
        if self._ledger is not None and self._ledger.cursor is not None:
            return self._ledger.cursor
        return streams.newest_event_id(self._client)

    def take_in(self, jobs: Iterable[Job], cursor: str | None = None) -> None:
        """Note what the server has of these jobs now, and up to which event that is."""
        self._append(lambda ledger: self._note(ledger, jobs, cursor))

    def given(self, job: Job, slot: Slot, at_ms: int) -> None:
        """Note at once that a number was given out: should the server lose it, it must never be given again."""
        attempt = Attempt(
            job=job.id, number=job.attempt, state=AttemptState.ASSIGNED, slot=slot.id, host=slot.host,
            assigned_at_ms=at_ms,
        )  # fmt: skip
        self._append(lambda ledger: ledger.append([Kept(job=job, attempts={job.attempt: attempt})]))

    def take_slots(self, slots: Iterable[Slot], breakers: Iterable[Breaker]) -> None:
        """Note all slots, those that left cordoned, and the breakers."""
        now = tuple(slots), tuple(sorted(breakers, key=lambda breaker: breaker.slot))
        self._append(lambda ledger: ledger.append(slots=now[0], away=self._away(ledger, now[0]), breakers=now[1]))

    def _away(self, ledger: Ledger, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
        """The cordoned slots that are off the books; the server keeps their records, and no list of them."""
        listed = {slot.id for slot in slots}
        left = {slot.id for slot in (*ledger.slots, *ledger.away) if slot.cordoned and slot.id not in listed}
        found = decoded(Slot, self._store.hashes(keys.slot(slot_id) for slot_id in sorted(left))) if left else []
        return tuple(slot for slot in found if slot.cordoned)

    def _append(self, act: Callable[[Ledger], None]) -> None:
        if self._ledger is None or not self.sure:
            return
        try:
            act(self._ledger)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Go on with a ledger that is in memory alone, and write it again later."""
        if self._retry_at_s is None:
            self._log.error("ledger_not_written", folder=str(self._folder), why=str(error))
        self._retry_at_s = time.monotonic() + _RETRY_S
        if self._ledger is not None:
            self._ledger.suspend()

    def _note(self, ledger: Ledger, jobs: Iterable[Job], cursor: str | None = None) -> None:
        here("before ledger")
        found: list[Kept] = []
        for page in _pages(list(jobs)):
            asked = [self._unknown(ledger.jobs.get(job.id), job) for job in page]
            for now in held(self._store, asked):
                found.append(Kept(job=now.job, attempts=dict(now.attempts), history=list(now.history)))
                self._copy_snapshot(ledger, now.job.spec.snapshot)
        if self.sure:  # else it may be a server with less that has answered
            try:
                ledger.append(found, cursor=cursor)
            except OSError as error:
                self._give_up(error)
        here("after ledger")

    @staticmethod
    def _unknown(known: Kept | None, job: Job) -> Wanted:
        """What may be new of a job since the ledger took it in."""
        if known is None:
            return Wanted(job=job)
        return Wanted(job=job, first=known.first_open, after=known.last_id if known.history else "-")

    def _copy_snapshot(self, ledger: Ledger, sha256: str | None) -> None:
        if sha256 is None or not ledger.writes or ledger.has_snapshot(sha256):
            return
        try:
            ledger.keep_snapshot(sha256, self._store.snapshot(sha256))
        except NotFound:
            self._log.warning("snapshot_gone", sha256=sha256)
        except OSError as error:
            self._give_up(error)

    def _take_news(self, ledger: Ledger) -> None:
        """Catch up with the events since the last one taken in."""
        while self.sure:
            self._renew()
            cursor = ledger.cursor or "0-0"
            page = streams.read_events(self._client, cursor, block_s=0.001, count=_PAGE)
            if not page:
                return
            self._note(ledger, self._store.jobs({event.job for _, event in page if event and event.job}), page[-1][0])

    def _take_all(self, ledger: Ledger) -> None:
        """Read everything: a new ledger, or one that the events have outrun."""
        cursor = streams.newest_event_id(self._client)
        wanted = {*self._store.live_job_ids(), *self._store.job_ids(ENDED_KEPT)}
        for page in _pages(sorted(wanted)):
            self._renew()
            self._note(ledger, self._store.jobs(page))
        self._note(ledger, (), cursor)


def _pages(items: list[T]) -> Iterator[list[T]]:
    """In pieces that one round trip carries well."""
    for at in range(0, len(items), _JOBS_AT_ONCE):
        yield items[at : at + _JOBS_AT_ONCE]
