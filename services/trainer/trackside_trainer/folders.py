"""Where an attempt lives on the disk, and how its folders are made ready."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trackside.errors import InvalidJob
from trackside.ids import check_job_id
from trackside.models import Job, Slot
from trackside.sdk.checkpoints import check_to_go_on
from trackside.sdk.context import STACKS_FILE, AttemptContext, Program, ResumePoint
from trackside.snapshots import unpack
from trackside.store import Store
from trackside.wholefile import write_whole
from trackside_trainer.adoption import adopt


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """The paths of one attempt."""

    data: Path
    job: str
    attempt: int

    @property
    def root(self) -> Path:
        return self.data / "jobs" / self.job / "attempts" / str(self.attempt)

    @property
    def context(self) -> Path:
        return self.root / "attempt.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def output(self) -> Path:
        return self.root / "output.log"

    @property
    def stacks(self) -> Path:
        return self.root / STACKS_FILE

    @property
    def page(self) -> Path:
        return self.root / "page"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def files(self) -> Path:
        return self.root / "files"

    @property
    def checkpoints(self) -> Path:
        return self.data / "jobs" / self.job / "checkpoints"


def newest_attempt(data: Path, job_id: str) -> int:
    """The largest number of an attempt of this job that has a folder here, 0 if there is none."""
    attempts = Folders(data=data, job=job_id, attempt=0).root.parent
    try:
        return max((int(path.name) for path in attempts.iterdir() if path.name.isdecimal()), default=0)
    except FileNotFoundError:
        return 0


def prepare(folders: Folders, store: Store, job: Job, slot: Slot, *, journal_max_bytes: int) -> AttemptContext:
    """Make the folders, unpack what was submitted and write the context.

    Raises InvalidJob or NotFound for a snapshot or checkpoints that cannot be had, OSError where the disk fails.
    """
    archive = _snapshot(folders.data, store, job.spec.snapshot) if job.spec.snapshot is not None else None
    if folders.root.exists():  # a try that was cut short, or a number that a restored server gave out again
        folders.root.rename(folders.root.with_name(f"{folders.attempt}.before-{time.time_ns()}"))
    for path in (folders.work, folders.files, folders.checkpoints):
        _make_private(path, folders.data)
    if archive is not None:
        unpack(archive, folders.work, sha256=job.spec.snapshot)
    resume = tuple(_resume_points(folders, job, slot))
    if job.spec.retry_of is not None and job.checkpoints and not resume:
        raise InvalidJob(
            f"the checkpoints to go on from are not in {folders.data / 'jobs'} any more: put them back and retry, or "
            "start over with `trackside retry --fresh`"
        )
    check_to_go_on(folders.checkpoints, resume, went_back=job.bad_step is None)  # else a divergence sent it back
    program = job.spec.program
    context = AttemptContext(
        job=job.id,
        attempt=folders.attempt,
        name=job.name,
        slot=slot.id,
        params=job.spec.params,
        attempt_dir=folders.root,
        journal=folders.journal,
        page=folders.page,
        work_dir=folders.work,
        files_dir=folders.files,
        checkpoints_dir=folders.checkpoints,
        program=Program(kind=program.kind, target=program.target, argv=program.argv),
        resume=resume,
        threads=slot.threads,
        gpu_uuid=slot.gpu_uuid,
        journal_max_bytes=journal_max_bytes,
    )
    context.to_file(folders.context)
    # The process finds its files there: it could not make them where the disk is full by then.
    for path in (folders.journal, folders.output, folders.stacks):
        path.touch(mode=0o600)
    return context


def _make_private(path: Path, data: Path) -> None:
    """Make a folder below `data` and those above it that are missing, each closed to other users of a shared disk."""
    data.mkdir(parents=True, exist_ok=True)
    steps = path.relative_to(data).parts
    for count in range(1, len(steps) + 1):
        data.joinpath(*steps[:count]).mkdir(exist_ok=True, mode=0o700)


def _resume_points(folders: Folders, job: Job, slot: Slot) -> Iterator[ResumePoint]:
    """Only what the store accepted, and only what lies here: another host's folder cannot be read."""
    for found in job.checkpoints:
        if found.storage != slot.storage:
            continue
        if found.job is None:
            yield ResumePoint(name=found.name, step=found.step, digest=found.digest)
            continue
        source = Folders(data=folders.data, job=check_job_id(found.job), attempt=0).checkpoints / found.name
        adopted = adopt(source, folders.checkpoints, step=found.step, digest=found.digest)
        if adopted is not None:
            yield ResumePoint(name=adopted.name, step=found.step, digest=adopted.digest)


def _snapshot(root: Path, store: Store, sha256: str) -> bytes:
    """The archive, from this host's copy if that is whole, else from the bus."""
    cached = root / "snapshots" / f"{sha256}.tar.gz"
    try:
        data = cached.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    except FileNotFoundError:
        pass
    data = store.snapshot(sha256)
    cached.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(cached, data)
    return data
