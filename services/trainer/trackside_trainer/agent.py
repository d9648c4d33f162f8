"""The trainer service of a host: one worker per slot, watched and replaced.

1. The agent takes the home's lock, so that workers which outlived an earlier agent know that they are not alone.
2. It imports torch and warms it up, in one thread and without CUDA, and forks a worker for each slot that has none.
   Workers and attempts share those pages, and a killed worker is replaced in milliseconds.
3. A worker's death is seen at once (pidfd). What its attempt left is killed, its journal is shipped, its end is
   reported; the new worker serves the slot meanwhile. A worker that keeps dying is restarted more and more slowly.
4. At an orderly stop: the beat says so, so that no more work comes; then workers (their attempts save and stop), then
   whoever is left, then slots and beats go.

A killed agent takes nobody along: its workers go on, and the next agent adopts them.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from trackside import logs, processes, storage
from trackside.bus.client import connect, service_url
from trackside.config import Settings
from trackside.errors import AlreadyRunning
from trackside.models import Slot
from trackside.processes import become_subreaper
from trackside.store import Store
from trackside_trainer import slotfiles
from trackside_trainer.books import Books
from trackside_trainer.gpuwatch import GpuWatch
from trackside_trainer.leftovers import Death, Leftover
from trackside_trainer.patience import Patience
from trackside_trainer.places import Place, WorkerHandle
from trackside_trainer.samples import GpuSampler, find_gpus
from trackside_trainer.slots import numbered, parse

_LOOK_S: Final = 0.1  # the longest sleep; deaths wake the agent at once
_COMMAND_LIMIT_S: Final = 1.0
_FORK_AGAIN_S: Final = 0.5
_LOCK_WAIT_S: Final = 3.0  # an agent that is on its way out
_KILL_LIMIT_S: Final = 5.0
_HUNG_MIN_S: Final = 5.0  # a worker may wait for a disk or a server for some seconds
_NOBODY: Final[Mapping[tuple[int, int], Death]] = MappingProxyType({})


class Agent:
    """The agent's loop. One thread: it forks."""

    def __init__(self, settings: Settings, slots: list[Slot], url: str, host: str, storage: str) -> None:
        self._settings, self._url, self._host, self._storage = settings, url, host, storage
        self._places = {slot.id: Place(slot=slot) for slot in slots}
        self._store = Store(connect(url, name=f"agent-{host}", command_limit_s=_COMMAND_LIMIT_S), by=f"agent:{host}")
        self._bus = Patience()
        self._leftovers: list[Leftover] = []
        self._stop_asked = False
        self._next_beat_s = self._next_sample_s = 0.0
        self._gpus = GpuSampler(settings.sample_s) if any(slot.kind == "gpu" for slot in slots) else None
        self._guard = GpuWatch(slots, wait_s=settings.gpu_free_wait_s)
        self._books = Books(
            settings, self._store, self._places, host=host, storage=storage, on_registered=self._guard.forget_told
        )
        self._log = logs.get()

    def ask_to_stop(self, *_: object) -> None:
        """The signal handler: sets a flag, the loop does the rest."""
        self._stop_asked = True

    # -- taking over -----------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Take over the workers of an earlier agent, and what its dead ones left behind."""
        for slot_id in slotfiles.known_slots(self._settings.home):
            holder = slotfiles.slot_lock(self._settings.home, slot_id).holder()
            if holder is None:
                continue
            place = self._places.get(slot_id)
            if place is None:
                surplus = Slot(id=slot_id, host=self._host, kind="cpu", storage=self._storage)
                place = self._places[slot_id] = Place(slot=surplus, wanted=False)
            pid, started = holder
            with suppress(ProcessLookupError):
                place.worker = WorkerHandle(pid=pid, started=started, pidfd=os.pidfd_open(pid), ours=False)
                self._log.info("worker_adopted", slot=slot_id, pid=pid)
                if not place.wanted:
                    os.kill(pid, signal.SIGTERM)
        self._bus.call(self._retire_dead_workers)
        self._find_leftovers()
        self._finish_leftovers()

    def _retire_dead_workers(self) -> None:
        for place in self._places.values():
            if place.worker is None:
                self._books.retire_worker(place)

    def _find_leftovers(self, seen: Mapping[tuple[int, int], Death] = _NOBODY) -> None:
        """Take up what dead workers had taken; `seen` are those whom we saw die, by pid and start time."""
        known = {leftover.path for leftover in self._leftovers}
        unseen = {(place.worker.pid, place.worker.started) for place in self._places.values() if place.worker}
        for path, taken in slotfiles.all_taken(self._settings.home):
            worker = taken.worker_pid, taken.worker_started
            if path in known or taken.worker_lives or worker in unseen:  # one that dies just now is seen to next
                continue
            death, by = seen.get(worker), f"agent:{self._host}"
            leftover = Leftover(
                self._settings, self._store, self._url, self._storage, path, taken, death or Death.found(taken), by
            )
            if death is not None:
                leftover.note_death()
            leftover.kill()
            self._leftovers.append(leftover)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Watch until asked to stop."""
        while not self._stop_asked and self._books.failed is None:
            self._fork_missing()
            self._wait(_LOOK_S)
            self._see_deaths()
            self._end_hung()
            self._finish_leftovers()
            self._talk()
        code = self._stop()
        if self._books.failed is not None:
            raise self._books.failed
        return code

    def _wait(self, limit_s: float) -> None:
        poll = select.poll()
        for place in self._places.values():
            if place.worker is not None:
                poll.register(place.worker.pidfd, select.POLLIN)
        poll.poll(max(1, int(limit_s * 1000)))

    def _fork_missing(self) -> None:
        for place in self._places.values():
            if place.worker is None and place.wanted and time.monotonic() >= place.not_before_s:
                try:
                    place.worker = WorkerHandle.fork(self._settings, place.slot, self._url)
                except OSError as error:  # the host has no process to give
                    self._log.error("worker_not_started", slot=place.slot.id, why=str(error))
                    place.not_before_s = time.monotonic() + _FORK_AGAIN_S

    def _see_deaths(self) -> None:
        deaths: dict[tuple[int, int], Death] = {}
        for place in self._places.values():
            worker = place.worker
            if worker is None or not worker.is_over:
                continue
            place.worker = None
            death = Death.seen(worker.close(), worker.ended_for)
            deaths[worker.pid, worker.started] = death
            self._follow(place, death)
        if deaths:
            self._kill_orphans()
            self._find_leftovers(deaths)

    def _follow(self, place: Place, death: Death) -> None:
        """See to a slot whose worker has died."""
        wait_s = place.plan_restart(self._settings)
        if not place.wanted:
            self._log.info("worker_gone", slot=place.slot.id, how=death.words)
            self._bus.call(lambda: self._books.retire_slot(place))
            return
        self._log.warning("worker_died", slot=place.slot.id, how=death.words, restart_in_s=round(wait_s, 2))
        if wait_s > 0:
            self._bus.call(lambda: self._books.retire_worker(place))

    def _end_hung(self) -> None:
        """Kill a worker whose loop stands still: frozen, or caught in the kernel. Its death is then handled as any."""
        looks_max = int(max(_HUNG_MIN_S, self._settings.stop_grace_s) / _LOOK_S)
        for name, place in self._places.items():
            if place.worker is not None and place.hangs(self._settings.home, looks_max=looks_max):
                looks, place.worker.looks = place.worker.looks, 0
                self._log.error("worker_hangs", slot=name, pid=place.worker.pid, looks=looks)
                place.worker.end(f"the worker stood still for {looks * _LOOK_S:.0f} s")

    def _kill_orphans(self) -> None:
        """What a dead worker's attempt left is our child now, and nobody else's."""
        known = {place.worker.pid for place in self._places.values() if place.worker is not None}
        known |= self._gpus.pids if self._gpus is not None else set()

        def orphans() -> list[int]:
            processes.reap_orphans(known)
            top = [pid for pid in processes.children(os.getpid()) if pid not in known]
            return [*top, *(below for pid in top for below in processes.descendants(pid))]

        left = processes.kill_until_gone(orphans, limit_s=_KILL_LIMIT_S)
        if left:
            self._log.error("processes_stuck", pids=left)

    def _finish_leftovers(self) -> None:
        self._leftovers = [leftover for leftover in self._leftovers if not leftover.advance(self._bus)]

    # -- talking ---------------------------------------------------------------------------------------------------

    def _talk(self) -> None:
        now_s = time.monotonic()
        if self._gpus is not None:
            if self._gpus.poll():
                self._guard.look(self._gpus.newest, slotfiles.own_processes(self._settings.home), now_s)
            elif self._gpus.mute:
                self._guard.no_answer(now_s)
            if self._books.registered and self._guard.has_news:
                self._bus.call(lambda: self._guard.tell(self._store))
        if now_s >= self._next_beat_s:
            self._next_beat_s = now_s + self._settings.beat_s
            self._bus.call(self._books.beat)
        if now_s >= self._next_sample_s:
            self._next_sample_s = now_s + self._settings.sample_s
            gpus = self._gpus.newest if self._gpus is not None else []
            self._bus.call(lambda: self._books.sample(gpus))

    # -- stopping --------------------------------------------------------------------------------------------------

    def _stop(self) -> int:
        """In order: no more work, workers stop (their attempts save), the rest is killed, ends are told, books closed.

        The beat comes first, or what one worker hands back is given to another that is about to stop as well.
        """
        self._log.info("agent_stopping", workers=len(self._books.worker_pids()))
        self._bus.call(lambda: self._books.beat(stopping=True))
        for place in self._places.values():
            place.wanted = False
            if place.worker is not None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(place.worker.pidfd, signal.SIGTERM)
        # A worker gives its attempt the grace, and needs a moment more to report the end.
        deadline_s = time.monotonic() + self._settings.stop_grace_s + 2 * _COMMAND_LIMIT_S
        self._until(lambda: not self._books.worker_pids(), deadline_s)
        for place in self._places.values():
            if place.worker is not None:
                place.worker.end("the worker did not stop within its grace")
        self._until(lambda: not self._books.worker_pids(), time.monotonic() + _KILL_LIMIT_S)
        self._until(lambda: not self._leftovers, time.monotonic() + 2 * _COMMAND_LIMIT_S)
        if self._gpus is not None:
            self._gpus.stop()
        self._bus.call(self._books.close)
        self._log.info("agent_stopped", reported_later=len(self._leftovers))
        return 0

    def _until(self, over: Callable[[], bool], deadline_s: float) -> None:
        while not over() and time.monotonic() < deadline_s:
            self._wait(_LOOK_S)
            self._see_deaths()
            self._finish_leftovers()
            if time.monotonic() >= self._next_beat_s:
                self._next_beat_s = time.monotonic() + self._settings.beat_s
                self._bus.call(lambda: self._books.beat(stopping=True))


def _only_agent(settings: Settings) -> slotfiles.ProcessLock:
    lock = slotfiles.agent_lock(settings.home)
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while not lock.take():
        if time.monotonic() > deadline_s:
            pid = (lock.holder() or (0, 0))[0]
            raise AlreadyRunning(
                f"the trainer of {settings.home} runs already as process {pid}: stop that one, "
                "or set TRACKSIDE_HOME to another directory",
                pid=pid,
            )
        time.sleep(0.05)
    return lock


def main(settings: Settings, *, slots: str = "auto") -> int:
    """Run the trainer service until SIGTERM or SIGINT; the exit code."""
    settings = replace(settings, home=settings.home.absolute())
    host = settings.host_name
    logs.configure(settings, role="agent", host=host)
    url = service_url(settings)
    lock = _only_agent(settings)
    become_subreaper()
    data_id = storage.identity(settings.data_dir)
    chosen = parse(slots, host=host, storage=data_id, find_gpus=lambda: numbered(settings.home, find_gpus()))
    agent = Agent(settings, chosen, url, host, data_id)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, agent.ask_to_stop)
    agent.adopt()
    from trackside_trainer.preload import preload

    began_s = time.monotonic()
    modules = preload()
    logs.get().info(
        "agent_started", slots=[slot.id for slot in chosen], modules=modules,
        preload_s=round(time.monotonic() - began_s, 2), pid=os.getpid(),
    )  # fmt: skip
    try:
        return agent.run()
    finally:
        lock.release()
