"""How work comes to a slot: ids off its queue, each checked and claimed, while the slot's gates let work in.

RQ's order: an id is moved from the queue to an intermediate list, and leaves that once its attempt is known to run.
Whoever dies in between, or loses the answer, leaves it there, so what is left is put back before anything is taken.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from trackside import logs, processes
from trackside.bus import queue
from trackside.bus.client import ResponseError, bus_errors
from trackside.config import Settings
from trackside.errors import DecodeError, Fenced, InvalidJob, NotFound, ServerBehind
from trackside.ids import parse_rq_job_id
from trackside.models import AttemptState, Job, Slot
from trackside.store import Store
from trackside_trainer import behind, slotfiles
from trackside_trainer.folders import newest_attempt
from trackside_trainer.worker import STRANGE, SlotWorker

# What can be wrong with an id that stands on our queue, other than the connection.
_REFUSED: Final = (InvalidJob, NotFound, Fenced, DecodeError, ResponseError, ValueError, *STRANGE)


class Gate(Protocol):
    """Something that may keep a slot from work."""

    words: str | None  # why the slot takes nothing, for people; None: it does

    def passes(self) -> bool:
        """Whether work may come in; asked before each turn, so it looks no oftener than what it looks at can bear."""


class Intake:
    """Takes in what is given to a slot."""

    def __init__(self, settings: Settings, slot: Slot, store: Store, rq: SlotWorker, gates: Sequence[Gate]) -> None:
        """`gates` are asked in this order, and the first that is closed says why."""
        self.blocked: str | None = None  # why the slot takes nothing, for people; None: it does
        self._settings, self._slot, self._store, self._rq, self._gates = settings, slot, store, rq, gates
        self._left = True  # there may be ids in the intermediate list: an earlier worker may have died
        self._log = logs.get()

    def is_open(self) -> bool:
        """Whether the slot's gates let work in."""
        blocked = next((gate.words for gate in self._gates if not gate.passes()), None)
        if blocked is not None and blocked != self.blocked:
            self._log.error("slot_blocked", why=blocked)
        elif blocked is None and self.blocked is not None:
            self._log.info("slot_open_again")
        self.blocked = blocked
        return blocked is None

    def take(self, wait_s: float) -> tuple[Job, queue.AttemptJob] | None:
        """The next attempt, claimed, as the store and as RQ know it; None where nothing came that is this slot's.

        Raises BusError and ServerBehind, and OSError where the disk does not take the note that we have it. In all
        three the id is still there, and the next call finds it.
        """
        if self._left:
            self._put_back()
        self._left = True
        raw = self._wait_for_id(wait_s)
        taken = self._accept(raw) if raw is not None else None
        self._left = False
        return taken

    def _put_back(self) -> None:
        target = self._rq.own_queue
        for raw in cast(list[bytes], self._store.client.lrange(target.intermediate_queue_key, 0, -1)):
            with self._store.client.pipeline() as pipe:
                pipe.lrem(target.intermediate_queue_key, 1, cast(Any, raw))
                pipe.lpush(target.key, raw)
                pipe.execute()

    def _wait_for_id(self, wait_s: float) -> bytes | None:
        target = self._rq.own_queue
        return cast(
            bytes | None,
            self._store.client.blmove(target.key, target.intermediate_queue_key, wait_s),  # type: ignore[arg-type]  # redis-py says int; the server takes fractions
        )

    def _accept(self, raw: bytes) -> tuple[Job, queue.AttemptJob] | None:
        """Claim the attempt behind an RQ job id; whatever is not this slot's to run is refused before any import."""
        rq_id = raw.decode("utf-8", "replace")
        try:
            rq_job, job_id, number = self._checked(rq_id)
            return self._claimed(job_id, number), rq_job
        except _REFUSED as error:
            self._refuse(rq_id, error)
            if rq_id.encode() != raw:  # no text, so it does not go by its name
                self._store.client.lrem(self._rq.own_queue.intermediate_queue_key, 0, cast(Any, raw))
            return None

    def _checked(self, rq_id: str) -> tuple[queue.AttemptJob, str, int]:
        job_id, number = parse_rq_job_id(rq_id)
        rq_job = self._rq.fetch(rq_id)
        job = self._store.job(job_id)
        if job.attempt != number or job.slot != self._slot.id:
            raise Fenced(f"attempt {number} of {job_id!r} is not given to this slot")
        return rq_job, job_id, number

    def _claimed(self, job_id: str, number: int) -> Job:
        """Say on the disk that we have it, before the store does: whoever finds us dead can then end it."""
        home = self._settings.home
        self._check_never_ran(job_id, number)
        path = slotfiles.taken_path(home, job_id, number, os.getpid())
        slotfiles.TakenAttempt(
            slot=self._slot.id,
            job=job_id,
            attempt=number,
            attempt_dir=str(self._settings.data_dir / "jobs" / job_id / "attempts" / str(number)),
            worker_pid=os.getpid(),
            worker_started=processes.start_time(os.getpid()) or 0,
        ).write(path)
        try:
            return self._store.claim(job_id, number, worker_pid=os.getpid())
        except Fenced:
            path.unlink(missing_ok=True)
            raise

    def _check_never_ran(self, job_id: str, number: int) -> None:
        """Raise ServerBehind where this attempt, or a later one, has run here: the server has forgotten it."""
        ran = newest_attempt(self._settings.data_dir, job_id)
        if ran < number or self._store.attempt(job_id, number).state is not AttemptState.ASSIGNED:
            return
        raise ServerBehind(
            f"the server gives out attempt {number} of {job_id!r}, and attempt {ran} of it has run here: {behind.TODO}",
            job=job_id,
        )

    def _refuse(self, rq_id: str, error: Exception) -> None:
        self._log.warning("rq_job_refused", rq_job=rq_id[:100], why=str(error) or type(error).__name__)
        with bus_errors():
            queue.drop(self._rq.connection, rq_id, self._slot.id, f"refused: {error}")
