"""Finishes attempts whose worker is dead: nobody trains on, nothing that was written is lost, and the end is told."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from trackside import logs, processes
from trackside.config import Settings
from trackside.errors import ConfigurationError, Fenced, NotFound, ServerBehind
from trackside.models import AttemptState, Outcome, Reason
from trackside.sdk.page import Command, ControlPage
from trackside.store import Store
from trackside_trainer import evidence, launch, stuck
from trackside_trainer.behind import Behind
from trackside_trainer.ending import Exit, end_of_page, judge
from trackside_trainer.folders import Folders
from trackside_trainer.patience import Patience
from trackside_trainer.shipping import JournalTail, OutputTail, end_record, ship_for
from trackside_trainer.slotfiles import TakenAttempt

_KILL_LIMIT_S: Final = 2.0
_ASK_AGAIN_S: Final = 0.5
_BUDGET_S: Final = 0.05  # of one look: the agent has other workers to see to


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How a worker died, for people, and whether that was the job's own affair."""

    words: str
    signal: str | None = None  # None: nobody saw it
    host: bool = False  # its host or its own agent brought it about

    @classmethod
    def seen(cls, status: int | None, ended_for: str | None = None) -> Self:
        """The death of a worker that was watched.

        `status` is its wait status if we are its parent, `ended_for` why its agent has killed it.
        """
        if ended_for is not None:
            return cls(words=f"{ended_for} and was ended by its agent", signal="SIGKILL", host=True)
        if status is None:
            return cls(words="the worker died")
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return cls(words=f"the worker was killed ({name})", signal=name)
        if status == 0:
            return cls(words="the worker stopped in order before the server had taken its report", host=True)
        return cls(words=f"the worker ended with exit code {os.waitstatus_to_exitcode(status)}")

    @classmethod
    def found(cls, taken: TakenAttempt) -> Self:
        """The death of a worker that was found dead by an agent that came later than it."""
        if taken.death is not None:
            return cls(words=taken.death, signal=taken.death_signal, host=bool(taken.death_host))
        if not taken.is_of_this_boot:
            return cls(words="its host went down, and has been started anew since", host=True)
        return cls(words="its worker and its agent went down together, as when a host goes down", host=True)


class Leftover:
    """An attempt that a dead worker had taken; `advance` until it says that it is done."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        url: str,
        storage: str,
        path: Path,
        taken: TakenAttempt,
        death: Death,
        by: str,
    ) -> None:
        self.path, self.taken = path, taken
        self._store, self._url, self._death = store, url, death
        self._seen_s = time.monotonic()
        self._by, self._home = by, settings.home
        self._folders = Folders(data=settings.data_dir, job=taken.job, attempt=taken.attempt)
        self._silent_until_s = 0.0
        self._ours: bool | None = None  # None: not looked yet
        self._journal = JournalTail(store, taken.job, taken.attempt, self._folders.journal, storage)
        self._output = OutputTail(
            store.client, taken.job, taken.attempt, self._folders.output, settings.output_max_bytes
        )
        self._log = logs.get().bind(job=taken.job, attempt=taken.attempt, slot=taken.slot)
        self._behind = Behind(self._log)

    def kill(self) -> None:
        """End every process of the attempt; its parent's death has ended the first one already."""
        if self.taken.pid is None:  # nothing was started, and another worker may run this very attempt by now
            return
        marker = launch.marker(self._folders.context)
        pid, started = (self.taken.pid, self.taken.pid_started) if self.taken.is_of_this_boot else (None, None)
        left = processes.kill_until_gone(lambda: processes.of_attempt(pid, started, marker), limit_s=_KILL_LIMIT_S)
        stuck.note(self._home, self.taken.slot, left)

    def note_death(self) -> None:
        """Write down how the worker died: the next agent may have to report it, and has not seen it."""
        death = self._death
        self.taken = replace(self.taken, death=death.words, death_signal=death.signal, death_host=death.host)
        try:
            self.taken.write(self.path)
        except OSError as error:
            self._log.warning("death_not_noted", why=str(error))

    def advance(self, bus: Patience) -> bool:
        """Go on with shipping and reporting; True once nothing is left to do."""
        if time.monotonic() < self._silent_until_s:
            return False
        try:
            done = bus.call(self._advance) is True
        except Fenced as error:  # it was ended elsewhere
            self._log.info("leftover_given_up", why=error.message)
            done = bus.call(self._discard) is True
        except (NotFound, ServerBehind) as error:  # the server has lost its record, which comes back
            self._behind.tell(error)
            self._silent_until_s = time.monotonic() + _ASK_AGAIN_S
            return False
        return done and self._forget()

    def _forget(self) -> bool:
        """Remove its record; False where the disk does not take that now."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            self._silent_until_s = time.monotonic() + _ASK_AGAIN_S
            return False
        return True

    def _advance(self) -> bool:
        if self._ours is None:
            self._ours = self._is_ours()
        if not self._ours:
            return True
        if self._ship():
            return False
        outcome = self._judge()
        self._store.end_attempt(self.taken.job, self.taken.attempt, outcome)
        self._log.warning("attempt_ended", reason=outcome.reason.value, detail=outcome.detail, step=outcome.last_step)
        return self._discard()

    def _ship(self) -> bool:
        """Send what there is; whether there may be more. What cannot be read is not waited for."""
        try:
            return ship_for(_BUDGET_S, self._journal, self._output)
        except OSError as error:  # the script replaced or removed its own files, or their disk fails
            self._log.error("attempt_files_unreadable", why=str(error))
            return False

    def _is_ours(self) -> bool:
        attempt = self._store.attempt(self.taken.job, self.taken.attempt)
        if attempt.state is AttemptState.ENDED:
            raise Fenced("it has ended already")
        # Where its worker died before it had claimed it, the next one finds it in the queue, or has it by now.
        return attempt.state is AttemptState.RUNNING and attempt.worker_pid == self.taken.worker_pid

    def _discard(self) -> bool:
        from trackside.bus import queue

        client = queue.rq_client(self._url, command_limit_s=1.0)
        try:
            queue.discard(client, self.taken.job, self.taken.attempt, self.taken.slot)
        finally:
            client.close()
        return True

    def _judge(self) -> Outcome:
        death, (first, last, asked, told) = self._death, self._page()
        noticed = int((time.monotonic() - self._seen_s) * 1000)
        end = end_record(self._folders.journal) or told
        seen = evidence.bounded((death.words, evidence.last_lines(self._folders.output)))
        ran_ms = 0 if self.taken.pid is None else None  # it had waited, or was being made ready
        if end is None:
            return Outcome(
                reason=Reason.LOST if death.host else Reason.KILLED, detail=death.words, signal=death.signal,
                first_step=first, last_step=last, evidence=seen, seen_by=self._by, noticed_after_ms=noticed,
                ran_ms=ran_ms,
            )  # fmt: skip
        return judge(
            end, Exit(status=None, asked=asked), first_step=first, last_step=last, evidence=seen, seen_by=self._by,
            noticed_after_ms=noticed, ran_ms=ran_ms,
        )  # fmt: skip

    def _page(self) -> tuple[int | None, int | None, Reason | None, dict[str, Any] | None]:
        """What the attempt's page tells: its first and last step, which stop it heard of, and its end."""
        try:
            page = ControlPage.open(self._folders.page)
        except (ConfigurationError, OSError):
            return None, None, None, None
        try:
            heard = page.heard
            asked = Reason(heard.reason) if heard is not Command.NONE else None
            return page.first, page.completed if page.first is not None else None, asked, end_of_page(page)
        finally:
            page.close()
