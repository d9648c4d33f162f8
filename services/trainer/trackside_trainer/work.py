"""The loop of a slot's worker: beat, take an attempt, carry it, stop when asked.

One loop and one thread. While the bus is away a running attempt goes on untouched, and what could not be told is told
later.
"""

from __future__ import annotations

import os
import select
import time
from typing import Any, Final

from trackside import logs
from trackside.bus import beats, queue
from trackside.bus.client import bus_errors, connect
from trackside.config import Settings
from trackside.errors import NotFound, ServerBehind
from trackside.models import Beat, Job, Reason, Role, Slot
from trackside.sdk import disk
from trackside.store import Store
from trackside_trainer import slotfiles
from trackside_trainer.attempt import AttemptRun, Stage
from trackside_trainer.behind import Behind
from trackside_trainer.diskgate import DiskGate
from trackside_trainer.gpulooks import FirstLook
from trackside_trainer.intake import Intake
from trackside_trainer.patience import Patience
from trackside_trainer.preparation import PreparationGate
from trackside_trainer.stuck import StuckGate
from trackside_trainer.worker import Carried, SlotWorker

_IDLE_WAIT_S: Final = 0.2  # of one wait for work; signals and beats are looked at in between
_COMMAND_LIMIT_S: Final = 1.0
_CLOSED_WAIT_S: Final = 0.2
_DISK_WAIT_S: Final = 1.0
_PREPARE_LOOK_S: Final = 0.005


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
        self._gpu = FirstLook(slot, limit_s=settings.gpu_free_wait_s)
        self._disk = DiskGate((settings.data_dir, settings.home / "run" / "slots"))
        self._unready = PreparationGate()
        gates = (self._disk, self._unready, StuckGate(settings.home, slot.id))
        self._intake = Intake(settings, slot, self._store, self._rq, gates)
        self._alone = False  # in RQ's lists
        self._carried: Carried | None = None
        self._stop_asked = self._stopping = False
        self._stop_by_s: float | None = None
        self._agent_seen_s = time.monotonic()
        self._next_agent_look_s = 0.0
        self._next_beat_s = 0.0
        self._started_at_ms = time.time_ns() // 1_000_000
        self._log = logs.get()
        self._behind = Behind(self._log)

    def ask_to_stop(self, *_: object) -> None:
        """The signal handler: sets a flag, the loop does the rest."""
        self._stop_asked = True

    def run(self) -> int:
        """Work until asked to stop. In order: take nothing more, stop the attempt and report it, leave the books."""
        self._log.info("worker_started", rq_name=self._rq.name, pid=os.getpid())
        self._takes_work()  # so that the first beat tells it
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
            blocked=self._intake.blocked,
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
                self._wait_for_records(error)
                return
            if not self._begun:
                run.tick(self._bus)
                self._pause(self._bus.wait_s() or _PREPARE_LOOK_S)
            elif run.hanging is not None:
                self._unready.close(run.hanging)
                self._takes_work()  # told before the attempt is given back, or it comes here again
            elif run.disk_error is not None:
                self._block(run.disk_error)
            elif run.pid is not None:
                self._disk.held()
            return
        poll = select.poll()
        if run.pidfd is not None:
            poll.register(run.pidfd, select.POLLIN)
        if run.stage is Stage.RUNNING or self._bus.away or run.waits:
            poll.poll(max(1, int(1000 * min(self._settings.ship_s, self._settings.beat_s))))
        run.tick(self._bus)
        if run.stage is Stage.DONE:
            self._finish(run)

    def _wait_for_records(self, error: NotFound | ServerBehind) -> None:
        """The server has lost records: what would be done without them is done when they are back."""
        self._behind.tell(error, job=error.facts.get("job"))
        self._pause(self._settings.control_poll_s)

    def _gpu_is_free(self, run: AttemptRun) -> bool:
        """Whether the attempt may begin, or end unbegun; while it waits it heeds what people ask of it."""
        if self._stopping or run.asked or self._gpu.is_free():
            return True
        if self._gpu.refused is not None:
            run.stop(Reason.PREEMPTED, self._gpu.refused)
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
        self._takes_work()

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
        self._takes_work()  # before the beat says that the slot is free
        self._next_beat_s = 0.0

    # -- taking ----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Wait for work, no longer than until the next beat."""
        if (wait_s := self._bus.wait_s()) > 0:
            self._pause(wait_s)
            return
        if not self._takes_work():
            self._pause(_CLOSED_WAIT_S)
            return
        wait_s = max(0.01, min(_IDLE_WAIT_S, self._next_beat_s - time.monotonic()))
        try:
            taken = self._bus.call(lambda: self._intake.take(wait_s))
        except ServerBehind as error:
            self._wait_for_records(error)
        except OSError as error:  # the disk does not take our note: the attempt waits in the queue meanwhile
            self._log.error("disk_failed", why=str(error))
            if error.errno in disk.FAILING:
                self._block(error)
            else:
                self._pause(_DISK_WAIT_S)
        else:
            if taken is not None:
                self._carry(*taken)

    def _takes_work(self) -> bool:
        """Whether the slot takes work now; the beat tells at once when that changes."""
        before = self._intake.blocked
        takes = self._intake.is_open()
        if self._intake.blocked != before:
            self._next_beat_s = 0.0
        return takes

    def _carry(self, job: Job, rq_job: queue.AttemptJob) -> None:
        self._run = AttemptRun(self._settings, self._store, self._slot, job, seen_by=f"worker:{self._slot.id}")
        self._carried, self._begun = Carried(self._rq, rq_job, self._slot.id), False
        self._gpu.begin()
        self._next_beat_s = 0.0

    def _pause(self, seconds: float) -> None:
        select.poll().poll(max(1, int(1000 * min(seconds, self._settings.beat_s))))
