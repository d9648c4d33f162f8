"""The loop of a slot's worker: beat, take an attempt, carry it, stop when asked.

One loop and one thread. While the bus is away a running attempt goes on untouched, and what could not be told is told
later.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any, Final, cast

from trackside import logs, processes
from trackside.bus import beats, queue
from trackside.bus.client import ResponseError, bus_errors, connect
from trackside.config import Settings
from trackside.errors import DecodeError, Fenced, InvalidJob, NotFound, ServerBehind
from trackside.ids import parse_rq_job_id
from trackside.models import AttemptState, Beat, Job, Reason, Role, Slot
from trackside.sdk import disk
from trackside.store import Store
from trackside_trainer import slotfiles
from trackside_trainer.attempt import BACKUP, COMPLAIN_S, AttemptRun, Stage
from trackside_trainer.diskgate import DiskGate
from trackside_trainer.folders import newest_attempt
from trackside_trainer.gpugate import Gate
from trackside_trainer.patience import Patience
from trackside_trainer.stuck import StuckGate
from trackside_trainer.worker import STRANGE, Carried, SlotWorker

_IDLE_WAIT_S: Final = 0.2  # of one wait for work; signals and beats are looked at in between
_COMMAND_LIMIT_S: Final = 1.0
_DISK_WAIT_S: Final = 1.0
_STUCK_WAIT_S: Final = 0.2
_PREPARE_LOOK_S: Final = 0.005
# What can be wrong with an id that stands on our queue, other than the connection.
_REFUSED: Final = (InvalidJob, NotFound, Fenced, DecodeError, ResponseError, ValueError, *STRANGE)


class Work:
    """The loop of a slot's worker."""

    def __init__(self, settings: Settings, slot: Slot, url: str, lock: slotfiles.ProcessLock) -> None:
        self._settings, self._slot, self._lock = settings, slot, lock
        self._client = connect(url, name=f"worker-{slot.id}", command_limit_s=_COMMAND_LIMIT_S)
        self._store = Store(self._client, by=f"worker:{slot.id}")
        self._rq = SlotWorker(slot.id, queue.rq_client(url, name=f"rq-{slot.id}", command_limit_s=_COMMAND_LIMIT_S))
        self._bus = Patience()
        self._agent = slotfiles.agent_lock(settings.home)
        self._run: AttemptRun | None = None
        self._begun = False
        self._gate = Gate(slot, limit_s=settings.gpu_free_wait_s)
        self._disk = DiskGate((settings.data_dir, settings.home / "run" / "slots"))
        self._stuck = StuckGate(settings.home, slot.id)
        self._alone = False  # in RQ's lists
        self._carried: Carried | None = None
        self._look_for_left = True  # in the intermediate list: a worker may have died between taking and claiming
        self._stop_asked = self._stopping = False
        self._stop_by_s: float | None = None
        self._agent_seen_s = time.monotonic()
        self._next_agent_look_s = 0.0
        self._next_beat_s = 0.0
        self._complain_at_s = 0.0
        self._started_at_ms = time.time_ns() // 1_000_000
        self._log = logs.get()

    def ask_to_stop(self, *_: object) -> None:
        """The signal handler: sets a flag, the loop does the rest."""
        self._stop_asked = True

    def run(self) -> int:
        """Work until asked to stop. In order: take nothing more, stop the attempt and report it, leave the books."""
        self._stuck.passes()
        self._log.info("worker_started", rq_name=self._rq.name, pid=os.getpid())
        while not self._may_leave():
            self._heed_signals()
            self._beat_when_due()
            if self._run is not None:
                self._drive(self._run)
            elif not self._stopping:
                self._take()
        self._bus.call(self._leave)
        self._log.info("worker_stopped")
        return 0

    # -- stopping --------------------------------------------------------------------------------------------------

    def _may_leave(self) -> bool:
        if not self._stopping:
            return False
        if self._run is None:
            return True
        # The process has ended, and the server does not take the report: the next agent will make it.
        overdue = self._stop_by_s is not None and time.monotonic() > self._stop_by_s
        return overdue and self._run.stage is not Stage.RUNNING

    def _heed_signals(self) -> None:
        if self._stopping:
            return
        if not self._stop_asked and not self._abandoned():
            return
        self._stopping = True
        self._stop_by_s = time.monotonic() + self._settings.stop_grace_s
        self._next_beat_s = 0.0
        self._log.info("worker_stopping", carries=self._run is not None)
        if self._run is not None:
            # An agent that stops does not wait for a long save; it waits twice as long as this beyond the grace.
            self._run.stop(Reason.PREEMPTED, saving_s=_COMMAND_LIMIT_S if self._stop_asked else None)

    def _abandoned(self) -> bool:
        """Whether no agent has been there for the grace; one that comes within it takes this worker over."""
        now_s = time.monotonic()
        if now_s < self._next_agent_look_s:
            return False
        self._next_agent_look_s = now_s + self._settings.beat_s
        if self._agent.holder() is not None:
            self._agent_seen_s = now_s
        return now_s - self._agent_seen_s > self._settings.stop_grace_s

    def _leave(self) -> None:
        with bus_errors():
            self._rq.leave()
        beats.retire(self._client, Role.WORKER, self._slot.id)

    # -- beating ---------------------------------------------------------------------------------------------------

    def _beat_when_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_beat_s:
            self._lock.touch()
            if self._bus.wait_s() == 0:  # a turn that is not taken is not spent: on a bad line each one counts
                self._next_beat_s = now_s + self._settings.beat_s
                if not self._bus.call(self._beat):
                    self._next_beat_s = 0.0  # it is what is due first once the bus answers
                self._bus.call(self._keep_rq_books)

    def _beat(self) -> bool:
        run = self._run
        vitals: dict[str, Any] = run.vitals() if run is not None else {}
        beat = Beat(
            role=Role.WORKER,
            name=self._slot.id,
            host=self._slot.host,
            pid=os.getpid(),
            started_at_ms=self._started_at_ms,
            at_ms=0,
            slot=self._slot.id,
            job=run.job_id if run is not None else None,
            attempt=run.number if run is not None else None,
            stopping=self._stopping,
            blocked=self._disk.words or self._stuck.words,
            **vitals,
        )
        # RQ's own heartbeat goes the same way: on a bad line each round trip counts.
        beats.publish(
            self._client, beat, self._settings.beat_ttl_s, also=lambda pipe: self._rq.heartbeat(pipeline=pipe)
        )
        return True

    def _keep_rq_books(self) -> None:
        with bus_errors():
            if not self._alone:
                self._rq.forget_others()
                self._alone = True
        if self._carried is not None:
            self._carried.open()

    # -- carrying --------------------------------------------------------------------------------------------------

    def _drive(self, run: AttemptRun) -> None:
        if not self._begun and not self._gpu_is_free(run):
            return
        if not self._begun:
            try:
                self._begun = self._bus.call(lambda: self._begin(run)) or False
            except (NotFound, ServerBehind) as error:  # its record and snapshot come back first
                self._wait_for_records(run.job_id, error.message)
                return
            if not self._begun:
                run.tick(self._bus)
                self._pause(self._bus.wait_s() or _PREPARE_LOOK_S)
            elif run.disk_error is not None:
                self._block(run.disk_error)
            elif run.pid is not None:
                self._disk.held()
            return
        poll = select.poll()
        if run.pidfd is not None:
            poll.register(run.pidfd, select.POLLIN)
        if run.stage is Stage.RUNNING or self._bus.away:
            poll.poll(max(1, int(1000 * min(self._settings.ship_s, self._settings.beat_s))))
        run.tick(self._bus)
        if run.stage is Stage.DONE:
            self._finish(run)

    def _wait_for_records(self, job_id: str, why: str) -> None:
        """The server has lost records: what would be done without them is done when they are back."""
        now_s = time.monotonic()
        if now_s >= self._complain_at_s:
            self._complain_at_s = now_s + COMPLAIN_S
            self._log.error("server_is_behind", job=job_id, why=why, todo=BACKUP)
        self._pause(self._settings.control_poll_s)

    def _gpu_is_free(self, run: AttemptRun) -> bool:
        """Whether the attempt may begin, or end unbegun; while it waits it heeds what people ask of it."""
        if self._stopping or run.asked or self._gate.passes():
            return True
        if self._gate.refused is not None:
            run.stop(Reason.PREEMPTED, self._gate.refused)
            return True
        run.tick(self._bus)
        self._pause(self._settings.ship_s)
        return False

    def _begin(self, run: AttemptRun) -> bool:
        if self._stopping:
            run.stop(Reason.PREEMPTED)
        return run.begin()

    def _block(self, error: OSError) -> None:
        """Take nothing more for now; the beat says so before the attempt is given back, or it comes here again."""
        self._disk.close(error)
        self._next_beat_s = 0.0
        self._log.error("slot_blocked", why=self._disk.words)

    def _finish(self, run: AttemptRun) -> None:
        """Close RQ's books too; while the server is away the slot waits with it, there is no work to take anyway."""
        carried, outcome = self._carried, run.outcome
        if carried is not None:
            succeeded = outcome is not None and outcome.reason is Reason.SUCCEEDED
            why = f"{outcome.reason}: {outcome.detail}" if outcome is not None else "fenced"

            def close() -> bool:
                carried.close(succeeded=succeeded, why=why)
                return True

            if not self._bus.call(close):
                return
        try:
            run.taken_path.unlink(missing_ok=True)
        except OSError as error:  # whoever finds it once this worker has ended sees that the attempt is over
            self._log.error("taken_not_removed", path=str(run.taken_path), why=str(error))
        self._run = self._carried = None
        self._nobody_is_stuck()  # before the beat says that the slot is free
        self._next_beat_s = 0.0

    # -- taking ----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Wait for work, no longer than until the next beat."""
        if (wait_s := self._bus.wait_s()) > 0:
            self._pause(wait_s)
            return
        if self._disk.words is not None and not self._opened():
            self._pause(_DISK_WAIT_S)
            return
        if not self._nobody_is_stuck():
            self._pause(_STUCK_WAIT_S)
            return
        if self._bus.away:
            self._look_for_left = True  # a reply that was lost may have moved an id
        if self._look_for_left:
            self._look_for_left = self._bus.call(self._put_back_left) is None
            return
        raw = self._bus.call(self._wait_for_id)
        if raw is None:
            return
        try:
            accepted = self._bus.call(lambda: self._accept(raw))
        except OSError as error:  # the disk does not take our note: the attempt waits in the queue meanwhile
            self._log.error("disk_failed", why=str(error))
            accepted = None
            if error.errno in disk.FAILING:
                self._block(error)
            else:
                self._pause(_DISK_WAIT_S)
        if accepted is None:
            self._look_for_left = True

    def _opened(self) -> bool:
        """Whether the disk takes something again."""
        if not self._disk.passes():
            return False
        self._next_beat_s = 0.0
        self._log.info("slot_open_again")
        return True

    def _nobody_is_stuck(self) -> bool:
        """Whether no process of an earlier attempt is left on the slot; the beat tells it where one is."""
        before = self._stuck.words
        free = self._stuck.passes()
        if self._stuck.words != before:
            self._next_beat_s = 0.0
            self._log.warning("slot_open_again" if free else "slot_blocked", why=self._stuck.words)
        return free

    def _pause(self, seconds: float) -> None:
        select.poll().poll(max(1, int(1000 * min(seconds, self._settings.beat_s))))

    def _wait_for_id(self) -> bytes | None:
        wait_s = max(0.01, min(_IDLE_WAIT_S, self._next_beat_s - time.monotonic()))
        target = self._rq.own_queue
        return cast(bytes | None, self._client.blmove(target.key, target.intermediate_queue_key, wait_s))  # type: ignore[arg-type]  # redis-py says int; the server takes fractions

    def _put_back_left(self) -> bool:
        target = self._rq.own_queue
        for raw in cast(list[bytes], self._client.lrange(target.intermediate_queue_key, 0, -1)):
            with self._client.pipeline() as pipe:
                pipe.lrem(target.intermediate_queue_key, 1, cast(Any, raw))
                pipe.lpush(target.key, raw)
                pipe.execute()
        return True

    def _accept(self, raw: bytes) -> bool:
        """Claim the attempt behind an RQ job id; whatever is not this slot's to run is refused before any import."""
        rq_id = raw.decode("utf-8", "replace")
        try:
            rq_job, job_id, number = self._checked(rq_id)
            job = self._claimed(job_id, number)
        except ServerBehind as error:
            self._look_for_left = True
            self._wait_for_records(rq_id, error.message)
            return False
        except _REFUSED as error:
            self._refuse(rq_id, error)
            return True
        self._run = AttemptRun(self._settings, self._store, self._slot, job, seen_by=f"worker:{self._slot.id}")
        self._carried, self._begun = Carried(self._rq, rq_job, self._slot.id), False
        self._gate.close()
        self._next_beat_s = 0.0
        return True

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
            f"the server gives out attempt {number} of {job_id!r}, and attempt {ran} of it has run here: {BACKUP}",
            job=job_id,
        )

    def _refuse(self, rq_id: str, error: Exception) -> None:
        self._log.warning("rq_job_refused", rq_job=rq_id[:100], why=str(error) or type(error).__name__)
        with bus_errors():
            queue.drop(self._rq.connection, rq_id, self._slot.id, f"refused: {error}")
