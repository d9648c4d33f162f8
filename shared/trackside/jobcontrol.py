"""Job control, what people ask for: submit, cancel, pause, resume, retry."""

from __future__ import annotations

from dataclasses import replace

from trackside.bus import keys
from trackside.bus.client import Pipeline
from trackside.codec import decode_fields
from trackside.errors import IllegalTransition, InvalidJob, NotFound
from trackside.jobstore import Change, JobStore
from trackside.line import FREE_SLOT
from trackside.models import ACTIVE, CheckpointRef, Event, EventKind, Job, JobSpec, JobState
from trackside.wording import became


class JobControl(JobStore):
    """Jobs, as people ask things of them."""

    def submit(
        self,
        job_id: str,
        name: str,
        spec: JobSpec,
        snapshot: bytes | None = None,
        checkpoints: tuple[CheckpointRef, ...] = (),
    ) -> Job:
        """Put a job on the bus, once: the same id again returns what is there.

        `checkpoints` are another job's, to go on from. Raises NotFound for a job in `spec.after` that is not there.
        """
        if snapshot is not None and spec.snapshot is not None:
            self.client.set(keys.snapshot(spec.snapshot), snapshot, nx=True)
        key = keys.job(job_id)
        parents = [("EXISTS", keys.job(parent)) for parent in spec.after]

        def turn(pipe: Pipeline) -> Job:
            raw, *there, now = self.look(pipe, key, ("HGETALL", key), *parents)
            if raw:
                return decode_fields(Job, raw)
            for parent, found in zip(spec.after, there, strict=True):
                if not found:
                    raise NotFound(f"no job {parent!r} to wait for: `trackside ls --all` lists the jobs", job=parent)
            job = Job(
                id=job_id, name=name, state=JobState.QUEUED, spec=spec, created_at_ms=now, changed_at_ms=now,
                detail=_waits(spec), checkpoints=checkpoints,
            )  # fmt: skip
            facts = {"retry_of": spec.retry_of, "from": checkpoints[0].name if checkpoints else None}
            event = Event(
                kind=EventKind.SUBMITTED, at_ms=now, job=job_id, new=job.state, by=self._by, cause="submitted",
                data={name: value for name, value in facts.items() if value is not None},
            )  # fmt: skip
            pipe.multi()
            pipe.zadd(keys.JOBS, {job_id: now})
            self._write(pipe, Change(job=job, events=(event,)))
            pipe.execute()
            return job

        return self.until_undisturbed(turn, f"job {job_id!r}", job=job_id)

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once where nothing runs, else by its worker. A finished job refuses."""

        def decide(job: Job, now: int) -> Change | None:
            if job.state in (JobState.CANCELLING, JobState.CANCELLED):
                return None
            if job.state.terminal:
                raise IllegalTransition(f"job {job_id!r} has {job.state} already: nothing to cancel", state=job.state)
            running = _runs(job)
            new = JobState.CANCELLING if running else JobState.CANCELLED
            waited = "cancelled before it ran again" if job.attempt else "cancelled before it ran"
            detail = "stops at the next step" if running else waited
            return self.moved(job, new, now, cause="cancel requested", detail=detail)

        return self.change(job_id, decide)

    def pause(self, job_id: str) -> Job:
        """Ask for a pause: at once where nothing runs, else at the next step boundary with a checkpoint."""

        def decide(job: Job, now: int) -> Change | None:
            if job.state in (JobState.PAUSING, JobState.PAUSED):
                return None
            given = _runs(job)
            new = JobState.PAUSING if given else JobState.PAUSED
            detail = "saves at the next step" if given else "paused; `trackside resume` goes on"
            return self.moved(job, new, now, cause="pause requested", detail=detail)

        return self.change(job_id, decide)

    def resume(self, job_id: str, checkpoint: str | None = None) -> Job:
        """Let a paused job go on under the same id: from its newest checkpoint, or back at an accepted one.

        One that is still on its way to pausing trains on.
        Going back takes the newer ones off the record; their folders stay on the disk until they are pruned.
        """

        def decide(job: Job, now: int) -> Change | None:
            newest = job.checkpoints[0].name if job.checkpoints else None
            going = job.state in (JobState.QUEUED, JobState.RUNNING)
            if going and checkpoint in (None, newest):
                return None
            if checkpoint is None and job.state is JobState.PAUSING:
                return self.moved(job, JobState.RUNNING, now, cause="resume requested", detail="trains on, not paused")
            if checkpoint is None:
                detail = _waits(job.spec, job)
                return self.moved(job, JobState.QUEUED, now, cause="resume requested", detail=detail, host_faults=0)
            if job.state is not JobState.PAUSED:
                raise IllegalTransition(
                    f"job {job_id!r} is {job.state}: only a paused one can go back to a checkpoint, so pause it first",
                    state=job.state,
                )
            names = [known.name for known in job.checkpoints]
            if checkpoint not in names:
                there = ", ".join(names) or "none"
                raise NotFound(f"job {job_id!r} has no checkpoint {checkpoint!r}; accepted ones: {there}", job=job_id)
            at = names.index(checkpoint)
            return self.moved(
                job, JobState.QUEUED, now, cause="resume requested", detail=f"goes back to {checkpoint}",
                inputs={"from": checkpoint, "dropped": names[:at]},
                checkpoints=job.checkpoints[at:], failures=0, barren=0, host_faults=0, rollbacks=0,
                bad_step=None,
            )  # fmt: skip

        return self.change(job_id, decide)

    def retry(
        self,
        job_id: str,
        new_id: str,
        *,
        fresh: bool = False,
        stall_limit_s: float | None = None,
        by: str | None = None,
    ) -> Job:
        """Submit a failed or cancelled job again, as a new one that goes on from the old one's checkpoints.

        `fresh` starts over; `stall_limit_s` takes the place of the old one's. The same `new_id` again returns what is
        there.
        """
        old = self.job(job_id)
        if old.state not in (JobState.FAILED, JobState.CANCELLED):
            hint = "nothing is to be done again" if old.state is JobState.SUCCEEDED else "cancel it first"
            raise IllegalTransition(f"job {job_id!r} is {old.state}: {hint}", job=job_id, state=old.state)
        for parent in self.jobs(old.spec.after):
            if parent.state in (JobState.FAILED, JobState.CANCELLED):
                raise InvalidJob(
                    f"job {job_id!r} waits for {parent.id!r}, which {became(parent.state)}: retry that one, then "
                    "submit this one again with --after the new id",
                    job=job_id,
                )
        limit_s = old.spec.stall_limit_s if stall_limit_s is None else stall_limit_s
        who = by or old.spec.submitted_by
        spec = replace(old.spec, retry_of=old.id, submitted_by=who, stall_limit_s=limit_s)
        return self.submit(new_id, old.name, spec, checkpoints=() if fresh else _inherited(old))


def _runs(job: Job) -> bool:
    """Whether an attempt has the job, or has just ended: what comes of that is the supervisor's to say."""
    return job.slot is not None or job.state in ACTIVE


def _waits(spec: JobSpec, job: Job | None = None) -> str:
    """Why a queued job does not run yet."""
    if spec.after and (job is None or job.attempt == 0):
        return f"waits for {', '.join(spec.after)} to succeed"
    return FREE_SLOT


def _inherited(old: Job) -> tuple[CheckpointRef, ...]:
    """A job's checkpoints as its successor lists them: one a step, in the folder of the job that wrote it."""
    newest = {found.step: found for found in reversed(old.checkpoints)}
    return tuple(
        replace(found, attempt=0, job=found.job or old.id) for _, found in sorted(newest.items(), reverse=True)
    )
