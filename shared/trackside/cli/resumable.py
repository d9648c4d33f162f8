"""Whether a paused job's checkpoints are still there, as far as this machine can see its host's disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trackside.errors import InvalidJob, NotFound

if TYPE_CHECKING:
    from pathlib import Path

    from trackside.config import Settings
    from trackside.models import CheckpointRef, Job


def check(settings: Settings, job: Job, checkpoint: str | None) -> None:
    """Raise where the job cannot go on from what it was told to, so that its pause stays.

    `checkpoint` None is the newest that is there. What lies on another machine's disk, or may not be read, its attempt
    judges.
    """
    from trackside import storage
    from trackside.models import JobState

    here = storage.known(settings.data_dir)
    seen = [ref for ref in job.checkpoints if ref.storage == here]
    if job.state is not JobState.PAUSED or not seen or len(seen) < len(job.checkpoints):
        return
    try:
        there = [ref.name for ref in seen if _is_there(settings.data_dir, job, ref)]
    except OSError:
        return
    if not there:
        raise InvalidJob(
            f"the checkpoints of job {job.id!r} are not in {settings.data_dir / 'jobs' / job.id / 'checkpoints'} any "
            "more: put them back; or `trackside cancel` it and start over with `trackside retry --fresh`",
            job=job.id,
        )
    if checkpoint in {ref.name for ref in seen} - set(there):
        raise NotFound(
            f"{checkpoint} is not on the disk any more; there are: {', '.join(there)}: choose one of them", job=job.id
        )


def _is_there(data: Path, job: Job, ref: CheckpointRef) -> bool:
    from trackside.sdk.checkpoints import checkpoint_name

    jobs = data / "jobs"
    if ref.job is None:
        return (jobs / job.id / "checkpoints" / ref.name).is_dir()
    adopted = jobs / job.id / "checkpoints" / checkpoint_name(ref.step, 0)
    return (jobs / ref.job / "checkpoints" / ref.name).is_dir() or adopted.is_dir()
