"""The supervisor's process: hold the lease, look, decide, act, and wait for the next event.

One tick, in order: renew the lease; see that the server has all that it had; take in the events since the last look;
end attempts that nobody can report any more; decide about jobs whose attempt has ended; let backoffs run out; heed the
jobs that others wait for; send self-tests to slots that have rested; give queued jobs to free slots. Every act is a
transaction that is refused if the lease is gone or the job has changed, so it may be killed between any two.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from types import FrameType

from trackside import logs
from trackside.bus import beats, keys, streams
from trackside.bus.client import Client, connect, service_url
from trackside.clock import Clock, SystemClock
from trackside.config import Settings
from trackside.errors import BusError, Conflict, DecodeError, NotFound, TracksideError
from trackside.line import FREE_SLOT
from trackside.models import ACTIVE, Attempt, AttemptState, Beat, EventKind, Job, JobState, Role
from trackside.records import decoded
from trackside.store import Store
from trackside_supervisor import crashpoints, parents
from trackside_supervisor.actions import Actions
from trackside_supervisor.clearsight import ClearSight
from trackside_supervisor.crashpoints import here
from trackside_supervisor.keeper import Keeper, SureLease
from trackside_supervisor.older import Verdict
from trackside_supervisor.placement import free_slots, place
from trackside_supervisor.standstill import Standstill
from trackside_supervisor.watch import Limits, Sight, lost

LEADS = "leads"  # the note by which a leader says that from here on it decides
_FORGET_S = 600.0  # `ps` shows the silent for this long
_TRIES = 2  # of a job in one round; the second where the connection broke in the first
_RESYNC_S = 1.0  # a full read of the live jobs, in case an event was missed


class Supervisor:
    """The loop around the pure core."""

    def __init__(self, settings: Settings, client: Client, actions_url: str, clock: Clock | None = None) -> None:
        self._settings = settings
        self._client = client
        self._clock = clock or SystemClock()
        self._host = settings.host_name
        self._name = f"{self._host}-{os.getpid()}"
        self.lease = SureLease(client, self._name, settings.lease_ttl_s, lambda: self._keeper.sure)
        self._store = Store(client, by=f"{Role.SUPERVISOR}:{self._name}", lease=self.lease)
        self._keeper = Keeper(settings, client, self._store, lambda: self._renew(self._clock.monotonic_s()))
        self._actions = Actions(self._store, settings, actions_url)
        self._standstill = Standstill(self._store, settings.data_dir)
        self._limits = Limits(
            margin_ms=int(settings.silent_margin_s * 1000),
            claim_ms=int((2 * settings.beat_ttl_s + settings.silent_margin_s) * 1000),
        )
        self._log = logs.get()
        self._jobs: dict[str, Job] = {}
        self._ended: dict[str, JobState] = {}  # of jobs that others wait for; a terminal state stays
        self._cursor: str | None = None
        self._started_at_ms = self._clock.wall_ms()
        self._beat_due_s = self._lease_due_s = self._resync_due_s = self._tend_due_s = self._forget_due_s = 0.0
        self._sight = ClearSight(settings.beat_ttl_s, settings.silent_margin_s)
        self._leads_anew = False  # and has not said so yet
        self._stop = False

    def stop(self, *_: int | FrameType | None) -> None:
        """Ask the loop to end; safe in a signal handler."""
        self._stop = True

    def run(self) -> int:
        """Work until stopped; returns the exit code."""
        failures = 0
        while not self._stop:
            try:
                self.tick()
                failures = 0
            except BusError as error:
                failures += 1
                self._cursor = None  # after a gap everything is read anew
                if failures == 1:
                    self._log.warning("bus_lost", error=str(error))
                self._clock.sleep_s(min(1.0, 0.05 * 2 ** min(failures, 5)))
        self._retire()
        return 0

    def tick(self) -> None:
        """One round; raises BusError when the server does not answer."""
        now_s = self._clock.monotonic_s()
        if self._cursor is None:
            self._sight.blind(now_s)
        self._sight.begin(now_s)
        leads = self._renew(now_s)
        here("before beat")
        self._beat(now_s, leads)
        if not leads:
            self._clock.sleep_s(self._settings.tick_s)
            self._cursor = None
            self._keeper.forget()
            return
        try:
            self._compare()
        except Conflict as error:
            self._log.warning("act_refused", error=str(error))
            return
        here("before events")
        self._take_in(now_s)
        here("before look")
        sight = self._look()
        try:
            self._act(sight)
        except Conflict as error:
            self._log.warning("act_refused", error=str(error))
        here("after round")

    # -- looking ---------------------------------------------------------------------------------------------------

    def _compare(self) -> bool:
        """See that the server has all that it had; after a rebuild everybody is heard out before silence is judged.

        False: it had less, so what was read before does not stand.
        """
        verdict = self._keeper.settle()
        if self._leads_anew:
            here("before leads")
            self._store.tell(LEADS, host=self._host, pid=os.getpid(), ledger="new" if self._keeper.is_new else "kept")
            self._leads_anew = False
        if verdict is None:
            return True
        if verdict is Verdict.OLDER:
            self._cursor = None
            self._sight.blind(self._clock.monotonic_s())
        if verdict is Verdict.OLDER or self._keeper.is_new:
            self._standstill.look_at_disk()
        return verdict is not Verdict.OLDER

    def _sure(self) -> bool:
        """Whether what was read stands; a connection that is a new one is compared first, so that no round is lost."""
        return self._keeper.sure or self._compare()

    def _renew(self, now_s: float) -> bool:
        if now_s < self._lease_due_s:
            return self.lease.held
        self._lease_due_s = now_s + self._settings.lease_ttl_s / 3
        held_before = self.lease.held
        if self.lease.hold() and not held_before:
            self._log.info("leads")
            self._cursor = None
            self._leads_anew = True
        return self.lease.held

    def _beat(self, now_s: float, leads: bool) -> None:
        if now_s < self._beat_due_s:
            return
        self._beat_due_s = now_s + self._settings.beat_s
        if leads and now_s >= self._forget_due_s:
            silent_s = _FORGET_S / self._settings.scale
            self._forget_due_s = now_s + silent_s / 10
            beats.forget(self._client, silent_s=silent_s)
        beat = Beat(
            role=Role.SUPERVISOR, name=self._name, host=self._host, pid=os.getpid(), started_at_ms=self._started_at_ms,
            at_ms=0, leader=leads,
        )  # fmt: skip
        beats.publish(self._client, beat, self._settings.beat_ttl_s)

    def _take_in(self, now_s: float) -> None:
        """Wait for events at most a tick, then bring the jobs in memory up to date."""
        if self._cursor is None:
            self._cursor = self._keeper.cursor()
            self._resync_due_s = 0.0
        wait_s = 0.001 if now_s >= self._resync_due_s else self._settings.tick_s
        found = streams.read_events(self._client, self._cursor, block_s=wait_s)
        changed = {event.job for _, event in found if event is not None and event.job is not None}
        if found:
            self._cursor = found[-1][0]
        fresh = self._store.jobs(changed) if changed else []
        if now_s >= self._resync_due_s or any(event is None for _, event in found):
            self._resync_due_s = now_s + _RESYNC_S
            self._jobs = {job.id: job for job in self._store.jobs(self._store.live_job_ids())}
        else:
            self._jobs.update({job.id: job for job in fresh})
            self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.state.terminal}
        if found:
            self._keeper.take_in(fresh, self._cursor)
        if any(event is not None and event.kind is EventKind.SLOT for _, event in found):
            self._tend_due_s = 0.0

    def _look(self) -> Sight:
        now_ms, deadlines = beats.deadlines(self._client)
        found = beats.read(self._client, list(deadlines))
        # Once more, behind the answers: a lid may have been shut since this round began, and no read has failed of it.
        now_s = self._clock.monotonic_s()
        self._sight.check(now_s)
        self._sight.server_said(now_ms, now_s)
        return Sight(now_ms=now_ms, deadlines=deadlines, beats=found, clear=self._sight.is_clear(now_s))

    # -- acting ----------------------------------------------------------------------------------------------------

    def _act(self, sight: Sight) -> None:
        standing = self._standstill.stands(self._jobs, sight)
        found = self._attempts()
        for job in [job for job in self._jobs.values() if job.id not in standing]:
            if not self._renew(self._clock.monotonic_s()):  # on a slow line a round outlasts the lease
                return
            for _ in range(_TRIES):
                if not self._keeper.sure:
                    if not self._compare():
                        return
                    sight = replace(sight, clear=False)  # by what was seen before the break nobody is taken for lost
                    found = {}
                self._settle_one(job, sight, found.get((job.id, job.attempt)))
                if self._keeper.sure:
                    break
        self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.state.terminal}
        if not self._sure():
            return
        if self._clock.monotonic_s() >= self._tend_due_s:
            self._tend_due_s = self._clock.monotonic_s() + _RESYNC_S
            slots = self._store.slots()
            for job in self._actions.tend_breakers(slots, sight.now_ms):
                self._jobs[job.id] = job
            self._keeper.take_slots(slots, self._actions.breakers.values())
        self._place(standing)

    def _attempts(self) -> dict[tuple[str, int], Attempt]:
        """The newest attempts that are open or to be decided about, but for such as cannot be read.

        In one round trip: a round that grows with the jobs would in the end be too long for any silence to be judged.
        """
        held = [job for job in self._jobs.values() if _is_held(job)]
        found = decoded(Attempt, self._store.hashes(keys.attempt(job.id, job.attempt) for job in held)) if held else []
        return {(attempt.job, attempt.number): attempt for attempt in found}

    def _settle_one(self, job: Job, sight: Sight, attempt: Attempt | None) -> None:
        """One record that cannot be read is no reason to stop for all."""
        try:
            self._jobs[job.id] = self._settle(job, sight, attempt)
        except NotFound as error:
            self._jobs.pop(job.id, None)
            self._log.warning("job_skipped", job=job.id, error=str(error))
        except TracksideError as error:
            if isinstance(error, BusError) and not isinstance(error, DecodeError):
                raise
            self._log.warning("job_skipped", job=job.id, error=str(error))

    def _settle(self, job: Job, sight: Sight, attempt: Attempt | None) -> Job:
        """Bring one job as far as this look allows; `attempt` is its newest, as far as it was read."""
        if job.state is JobState.WAITING:
            due = job.retry_at_ms is None or sight.now_ms >= job.retry_at_ms
            return self._actions.requeue(job) if due else job
        if parents.waits(job):
            verdict = self._verdict(job)
            return job if verdict.answer == "waits" else self._actions.heed_parents(job, verdict)
        if not _is_held(job):
            return job
        attempt = attempt or self._store.attempt(job.id, job.attempt)
        loss = lost(job, attempt, sight, self._limits)
        if loss is not None:
            job = self._actions.end_lost(job, attempt, loss)
            attempt = self._store.attempt(job.id, job.attempt)  # its worker may have reported its end meanwhile
        if attempt.state is AttemptState.ENDED:
            return self._actions.conclude(job, attempt, self._previous(attempt))
        return job

    def _verdict(self, job: Job) -> parents.Verdict:
        """What the jobs that this one waits for say; a record is read only while its end is not known."""
        states: dict[str, JobState | None] = {}
        for parent in job.spec.after:
            live = self._jobs.get(parent)
            states[parent] = live.state if live is not None else self._ended.get(parent)
        unknown = [parent for parent, state in states.items() if state is None]
        for parent in unknown:
            with suppress(NotFound):
                state = states[parent] = self._store.job(parent).state
                if state.terminal:
                    self._ended[parent] = state
        return parents.verdict(job, states)

    def _previous(self, attempt: Attempt) -> Attempt | None:
        """The attempt before; None too where it cannot be read: by it a job is only seen to repeat itself."""
        if attempt.number == 1:
            return None
        try:
            return self._store.attempt(attempt.job, attempt.number - 1)
        except (NotFound, DecodeError) as error:
            self._log.warning("attempt_before_unknown", job=attempt.job, number=attempt.number - 1, error=str(error))
            return None

    def _place(self, standing: set[str]) -> None:
        queued = [
            job
            for job in self._jobs.values()
            if job.state is JobState.QUEUED
            and job.id not in standing
            and job.slot is None
            and (not parents.waits(job) or job.detail == FREE_SLOT)  # that its parents let it run is told first
        ]
        if not queued:
            return
        now = self._look()  # an end that was settled in this round may be that of a trainer which stops since
        alive = {name: beat for name, beat in now.beats.items() if now.deadlines.get(name, 0) >= now.now_ms}
        free = free_slots(self._store.slots(), self._jobs.values(), alive)
        for job, slot, inputs in place(queued, free, self._actions.breakers):
            assigned = self._jobs[job.id] = self._actions.assign(job, slot, inputs)
            if assigned.slot == slot.id:
                self._keeper.given(assigned, slot, now.now_ms)

    def _retire(self) -> None:
        try:
            self.lease.release()
            beats.retire(self._client, Role.SUPERVISOR, self._name)
        except (BusError, Conflict) as error:
            self._log.warning("left_without_farewell", error=str(error))


def _is_held(job: Job) -> bool:
    """Whether an attempt has the job, or has just ended."""
    return job.slot is not None or job.state in ACTIVE


def main(settings: Settings) -> int:
    """Run the supervisor in the foreground until SIGTERM or SIGINT."""
    logs.configure(settings, role="supervisor")
    crashpoints.arm(os.environ.get(crashpoints.ENVIRONMENT))
    url = service_url(settings)
    supervisor = Supervisor(settings, connect(url, name="supervisor"), url)
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    started = time.monotonic()
    code = supervisor.run()
    logs.get().info("stopped", ran_s=round(time.monotonic() - started, 1))
    return code
