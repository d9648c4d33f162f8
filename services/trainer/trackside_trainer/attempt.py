"""One attempt, from the moment its worker has claimed it to its outcome in the store.

    1. folders, snapshot, context and control page are made; the process is forked;
    2. while it runs: its journal and output are shipped, what people ask of the job is passed on, time and progress
       are watched;
    3. it ends, or is ended: whatever descends from it is killed, so that the slot is really free;
    4. the rest of journal and output is shipped, and only then is the attempt reported as over.

The worker's loop calls `tick`; nothing here waits for the bus, and nothing that the bus does ends the training.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Final

from trackside import logs, processes
from trackside.config import Settings
from trackside.errors import Fenced, InvalidJob, NotFound, ServerBehind
from trackside.models import ACTIVE, EventKind, Failure, Job, JobState, Outcome, Reason, Slot
from trackside.sdk import disk
from trackside.sdk.context import AttemptContext
from trackside.sdk.page import ControlPage
from trackside.store import Store, check_not_behind
from trackside_trainer import folders as folders_
from trackside_trainer import launch, stuck
from trackside_trainer.asking import Asking, is_over
from trackside_trainer.behind import Behind
from trackside_trainer.closing import Closing
from trackside_trainer.earlier import EarlierCurves
from trackside_trainer.patience import Patience
from trackside_trainer.pausing import Pausing
from trackside_trainer.preparation import Preparation
from trackside_trainer.shipping import JournalTail, OutputTail, ship_for
from trackside_trainer.slotfiles import TakenAttempt, taken_path
from trackside_trainer.vitals import Vitals
from trackside_trainer.watchdog import Watchdog

_KILL_TURN_S: Final = 0.25  # of it, in one tick
_KILL_LIMIT_S: Final = 5.0  # then whoever is left hangs in the kernel, and the slot must go on
_SHIP_BUDGET_S: Final = 0.03  # of one tick; the rest waits for the next, so that ends and beats are never late
_NOTES_KEPT: Final = 20


class Stage(Enum):
    RUNNING = "running"
    CLEARING = "clearing"  # the process has ended, and what descends from it not yet
    DRAINING = "draining"
    DONE = "done"


class AttemptRun:
    """An attempt on its slot; `worker_name` reports its end."""

    def __init__(self, settings: Settings, store: Store, slot: Slot, job: Job, *, seen_by: str) -> None:
        self.job_id, self.number = job.id, job.attempt
        self.stage = Stage.RUNNING
        self.outcome: Outcome | None = None
        self.pid: int | None = None
        self.pidfd: int | None = None
        self._settings, self._store, self._slot, self._job = settings, store, slot, job
        self._folders = folders_.Folders(data=settings.data_dir, job=job.id, attempt=job.attempt)
        self._log = logs.get().bind(job=job.id, attempt=job.attempt, slot=slot.id)
        self._preparation: Preparation | None = None
        self._page: ControlPage | None = None
        self._asking = Asking(settings, self._log)
        self._pausing = Pausing(settings, store, job, self._asking, self._log)
        self._closing = Closing(slot, self._folders, seen_by=seen_by)
        self.disk_error: OSError | None = None  # for which it could not start, and no other could
        self.hanging: Preparation | None = None  # that was given up, and beside which no other can start
        self._watchdog: Watchdog | None = None
        self._notes: deque[str] = deque(maxlen=_NOTES_KEPT)  # for the history, once the bus takes them
        self._told_pid = self._disk_failed = False
        self._pid_started: int | None = None  # of a process that the slot's file does not name yet
        self._silent_until_s = 0.0
        self._behind = Behind(self._log)
        self._next_ship_s = self._next_control_s = self._clear_until_s = 0.0
        self._vitals = Vitals()
        self._journal = JournalTail(
            store, job.id, job.attempt, self._folders.journal, slot.storage,
            on_accepted=self._tell_accepted, more_comes=self._more_comes,
        )  # fmt: skip
        self._earlier = EarlierCurves(store, job, settings.data_dir)
        self._output = OutputTail(
            store.client, job.id, job.attempt, self._folders.output, settings.output_max_bytes,
            more_comes=self._more_comes,
        )  # fmt: skip

    # -- beginning -------------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Prepare and start the process; whether that is over, else it is to be called again soon.

        What cannot start ends at once. Raises BusUnavailable, NotFound or ServerBehind, to be called again too.
        """
        if self._preparation is not None and not self._preparation.done:
            return self._gives_up(self._preparation)
        if self._job.state is JobState.CANCELLING:
            return self._end_unstarted(Outcome(reason=Reason.CANCELLED, detail="cancelled before it started"))
        asked = self._asking.reason
        if asked is not None:
            return self._end_unstarted(Outcome(reason=asked, detail=self._asking.why or "stopped before it started"))
        if self._preparation is None:
            limit = self._settings.journal_max_bytes
            self._preparation = Preparation(
                lambda: folders_.prepare(self._folders, self._store, self._job, self._slot, journal_max_bytes=limit),
                limit_s=self._settings.startup_limit_s,
                grace_s=self._settings.stop_grace_s,
            )
            return False
        preparation, self._preparation = self._preparation, None
        try:
            self._start(preparation.result())
        except (InvalidJob, NotFound) as error:
            if isinstance(error, NotFound):
                check_not_behind(self._store.job(self.job_id), self.number)
            failure = Failure(type=type(error).__name__, message=error.message)
            return self._end_unstarted(Outcome(reason=Reason.INVALID_JOB, detail=error.message, failure=failure))
        except OSError as error:
            return self._end_unstarted(self._refused_by_host(error))
        except (TypeError, ValueError) as error:  # a spec that was checked at its submission does not do this
            detail = f"the job's record cannot be used: {error}"
            failure = Failure(message=str(error))
            return self._end_unstarted(Outcome(reason=Reason.INVALID_JOB, detail=detail, failure=failure))
        return True

    def _gives_up(self, preparation: Preparation) -> bool:
        """End it unbegun where its folders do not become ready; whether it did."""
        asked = self._asking.reason
        if not preparation.overdue(asked=asked is not None):
            return False
        self.hanging = preparation
        limit_s, why = self._settings.startup_limit_s, self._asking.why
        late = f"its folders in {self._settings.data_dir} were not ready after {limit_s:g} s: its host's disk hangs"
        if asked is None:
            return self._end_unstarted(
                Outcome(reason=Reason.PREEMPTED, detail=f"handed back before it started: {late}")
            )
        detail = why or "stopped before it started, while its host's disk hung"
        return self._end_unstarted(Outcome(reason=asked, detail=detail))

    def _start(self, context: AttemptContext) -> None:
        folders = self._folders
        page = self._page = ControlPage.create(folders.page)
        if self._job.checkpoints:
            page.accepted = self._job.checkpoints[0].step
        started = launch.start(
            context, folders.context, output=folders.output, python=self._job.spec.python, home=self._settings.home
        )
        self.pid, self.pidfd, self._pid_started = started.pid, started.pidfd, started.started
        self._closing.started()
        self._asking.started(page, started.pidfd)
        self._watchdog = Watchdog(self._settings, page, started.pid, folders.stacks, folders.output, self._job)
        if not self._note_pid():
            self._log.warning("pid_not_noted", path=str(self.taken_path))
        self._log.info("attempt_started", pid=started.pid, cold=self._job.spec.python is not None)

    def _note_pid(self) -> bool:
        """Write down who runs, so that whoever finds this worker dead can end it; a full disk takes it later."""
        try:
            self.taken(self.pid, self._pid_started).write(self.taken_path)
        except OSError:
            return False
        self._pid_started = None
        return True

    def _refused_by_host(self, error: OSError) -> Outcome:
        if error.errno in disk.FAILING:
            self.disk_error = error
            detail = f"this host's disk does not take the attempt ({error}): {disk.remedy(error.errno)}"
            return Outcome(reason=Reason.PREEMPTED, detail=detail)
        detail = f"the attempt could not be started on this host: {error}"
        return Outcome(reason=Reason.KILLED, detail=detail, failure=Failure(message=str(error)))

    def _end_unstarted(self, outcome: Outcome) -> bool:
        self._log.warning("attempt_not_started", reason=outcome.reason.value, detail=outcome.detail)
        self.outcome = replace(outcome, ran_ms=0)
        self.stage = Stage.DRAINING
        return True

    @property
    def asked(self) -> bool:
        """Whether it was asked to stop."""
        return self._asking.reason is not None

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do for a moment: the server has lost its records."""
        return time.monotonic() < self._silent_until_s

    @property
    def taken_path(self) -> Path:
        return taken_path(self._settings.home, self.job_id, self.number, os.getpid())

    # -- the loop --------------------------------------------------------------------------------------------------

    def tick(self, bus: Patience) -> None:
        """Do what is due now; never waits longer than one command of the bus takes."""
        if self.stage is Stage.CLEARING:
            self._clear()
        if self.stage is Stage.RUNNING and self._has_exited():
            self._on_exit()
        if self.stage is Stage.RUNNING:
            self._keep_time()
            self._keep_watch()
        try:
            if self._asking.reason is not Reason.FENCED and time.monotonic() >= self._silent_until_s:
                self._talk(bus)
        except Fenced as error:
            self._log.warning("attempt_fenced", why=error.message)
            self.stop(Reason.FENCED)
        except (NotFound, ServerBehind) as error:  # training goes on; what is to be told waits, also after its end
            self._silent_until_s = time.monotonic() + self._settings.control_poll_s
            self._behind.tell(error)
        if self._asking.reason is Reason.FENCED and self.stage is Stage.DRAINING:
            self.stage = Stage.DONE

    def _talk(self, bus: Patience) -> None:
        now_s = time.monotonic()
        if self.stage is Stage.RUNNING:
            if now_s >= self._next_control_s:
                self._next_control_s = now_s + self._settings.control_poll_s
                bus.call(self._look_at_job)
            if now_s >= self._next_ship_s:
                self._next_ship_s = now_s + self._settings.ship_s
                bus.call(self._ship)
            if self._notes:
                bus.call(self._tell_notes)
        elif self.stage is Stage.DRAINING and self._closing.known() and bus.call(self._ship) is False:
            bus.call(self._report)

    def _ship(self) -> bool:
        """Send what there is, within this tick's budget; whether there may be more."""
        try:
            if ship_for(_SHIP_BUDGET_S, self._earlier):
                return True
            return ship_for(_SHIP_BUDGET_S, self._journal, self._output)
        except OSError as error:  # the script removed or locked its own files
            if not self._disk_failed:
                self._log.error("attempt_files_unreadable", why=str(error))
            self._disk_failed = True
            return False

    def _more_comes(self) -> bool:
        return self.stage is Stage.RUNNING

    def _tell_accepted(self, step: int) -> None:
        """Let the run prune what came before: its next attempt would not need it."""
        if self._page is not None:
            self._page.accepted = step  # lower than before, where what the record named could not be used

    def _look_at_job(self) -> None:
        job = self._store.job(self.job_id)
        check_not_behind(job, self.number)
        if job.state is JobState.QUEUED and job.attempt == self.number and job.slot == self._slot.id:
            # We have it, so the server has lost the claim.
            job = self._store.claim(self.job_id, self.number, worker_pid=os.getpid())
        if job.attempt != self.number or job.slot != self._slot.id or job.state not in ACTIVE:
            raise Fenced(f"the job is {job.state}, and attempt {job.attempt} is its newest")
        if job.state is JobState.CANCELLING:
            self.stop(Reason.CANCELLED)
        elif job.state is JobState.PAUSING:
            self._pausing.wanted(self._page)
        else:
            self._pausing.unwanted(self._page)
        if not self._told_pid and self.pid is not None:
            self._store.note_attempt(self.job_id, self.number, EventKind.NOTE, "process started", pid=self.pid)
            self._told_pid = True

    def _keep_time(self) -> None:
        if self.pid is None:  # its wait for a GPU is not its own time
            return
        spec, ran_s = self._job.spec, self._closing.ran_s
        if spec.timeout_s is not None and self._job.ran_ms / 1000 + ran_s > spec.timeout_s:
            self.stop(Reason.TIMEOUT, f"the job's time limit of {spec.timeout_s:g} s was reached")
        elif spec.attempt_timeout_s is not None and ran_s > spec.attempt_timeout_s:
            self.stop(Reason.TIMEOUT, f"the limit of {spec.attempt_timeout_s:g} s for one attempt was reached")
        self._asking.remind()
        if self._asking.overdue():
            self._log.warning("attempt_killed", why="it did not stop within its grace")
            self._closing.killed_by_us = True
            self.kill()
        if self._pid_started is not None:
            self._note_pid()

    def _keep_watch(self) -> None:
        if self._watchdog is None or self._asking.reason not in (None, Reason.PAUSED):  # the others have a deadline
            return
        hung = self._watchdog.look(self._notes.append)
        if hung is not None:
            self._log.warning("attempt_stalled", why=hung.detail, state=hung.evidence[0])
            self._closing.hung = hung
            self._notes.append(f"stalled: {hung.detail}; its stacks are kept and it is asked to stop")
            # A checkpoint that has had its limit gets no more; one that begins now may hang as the step did.
            self.stop(Reason.STALLED, hung.detail, saving_s=0.0 if hung.saving else self._settings.stop_grace_s)
            with suppress(ProcessLookupError):
                os.kill(self.pid or 0, signal.SIGCONT)  # a stopped process takes no SIGTERM

    def _tell_notes(self) -> bool:
        while self._notes:
            self._store.note_attempt(
                self.job_id, self.number, EventKind.NOTE, "note", level="warning", text=self._notes[0]
            )
            self._notes.popleft()
        return True

    def stop(self, reason: Reason, why: str | None = None, *, saving_s: float | None = None) -> None:
        """Ask the process to stop at its next boundary; see `Asking.stop`."""
        self._asking.stop(reason, why, saving_s=saving_s)

    def kill(self) -> None:
        """SIGKILL to the process and all that descends from it."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        processes.kill(processes.descendants(os.getpid()))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _has_exited(self) -> bool:
        return self.pidfd is not None and is_over(self.pidfd)

    def _on_exit(self) -> None:
        assert self.pid is not None  # noqa: S101 -- only a started process has a pidfd
        _, status, used = os.wait4(self.pid, 0)
        self._closing.ended(status, used.ru_maxrss / 1024)
        os.close(self.pidfd or -1)
        self.pidfd = None
        self._asking.ended()
        self._clear_until_s = time.monotonic() + _KILL_LIMIT_S
        self.stage = Stage.CLEARING
        self._clear()

    def _clear(self) -> None:
        """End what the process left; it may take seconds to go, and the worker has to beat meanwhile."""
        left = processes.kill_until_gone(lambda: processes.descendants(os.getpid()), limit_s=_KILL_TURN_S)
        if left and time.monotonic() < self._clear_until_s:
            return
        processes.reap()
        stuck.note(self._settings.home, self._slot.id, left)
        self._closing.look_at_gpu(asked=self._asking.heard is not None)
        self.stage = Stage.DRAINING

    def _report(self) -> None:
        outcome = self.outcome or self._closing.outcome(self._page, self._asking)
        self._store.end_attempt(self.job_id, self.number, outcome)
        self.outcome, self.stage = outcome, Stage.DONE
        self._log.info("attempt_ended", reason=outcome.reason.value, detail=outcome.detail, step=outcome.last_step)

    # -- what others see -------------------------------------------------------------------------------------------

    def taken(self, pid: int | None = None, pid_started: int | None = None) -> TakenAttempt:
        """The record of who has taken this attempt."""
        return TakenAttempt(
            slot=self._slot.id,
            job=self.job_id,
            attempt=self.number,
            attempt_dir=str(self._folders.root),
            worker_pid=os.getpid(),
            worker_started=processes.start_time(os.getpid()) or 0,
            pid=pid,
            pid_started=pid_started,
        )

    def vitals(self) -> dict[str, float | int | None]:
        """What a beat tells about the attempt."""
        if self._page is None:
            return {}
        return {"attempt_pid": self.pid, **self._vitals.look(self._page, running=self.stage is Stage.RUNNING)}
