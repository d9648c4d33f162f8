"""Jobs of which there is more than the server knows, and no ledger to restore them from: nothing is done about them.

What tells is a worker that carries a newer attempt than the record has, and, for a supervisor that has no ledger yet,
the folders of jobs on its host. Such a job is not placed, not taken for lost and not decided about: it would run a
second time. It is said once each time it is found, and people decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from trackside import logs
from trackside.bus import keys
from trackside.errors import TracksideError
from trackside.models import EventKind, Job, JobState, Role
from trackside.store import Change, Store
from trackside_supervisor.older import ahead
from trackside_supervisor.watch import Sight

OLDER: Final = "server is older"
_TODO: Final = "restore the server's data from a backup, or cancel the job and submit it again"
_NAMED: Final = 10


class Standstill:
    """The jobs that are left alone."""

    def __init__(self, store: Store, data: Path) -> None:
        self._store, self._jobs_folder = store, data / "jobs"
        self._on_disk: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._log = logs.get()

    def look_at_disk(self) -> None:
        """Compare the folders of jobs on this host with the server, where no ledger could."""
        folders = dict(_folders(self._jobs_folder))
        there: dict[str, int | None] = {}
        with self._store.client.pipeline(transaction=False) as pipe:
            for job_id in folders:
                pipe.hget(keys.job(job_id), "attempt")
            for job_id, raw in zip(folders, pipe.execute() if folders else (), strict=True):
                there[job_id] = None if raw is None else int(raw)
        self._on_disk = ahead(there, folders.items())
        unknown = sorted(job_id for job_id in folders if there[job_id] is None)
        if unknown:
            self._log.error("jobs_unknown_to_the_server", jobs=unknown[:_NAMED], count=len(unknown), todo=_TODO)

    def stands(self, jobs: Mapping[str, Job], sight: Sight) -> set[str]:
        """Ids of the jobs that nothing is to be done about; those that are new among them are told."""
        carried = list(_carried(sight))
        there: dict[str, int | None] = {job_id: job.attempt for job_id, job in jobs.items()}
        missing = {job_id for job_id, _ in carried if job_id not in there}
        there |= {job.id: job.attempt for job in self._store.jobs(missing)} if missing else {}
        on_disk = [(job_id, number) for job_id, number in self._on_disk.items() if job_id in jobs]
        found = ahead(there, [*carried, *on_disk])
        for job_id, number in found.items():
            if self._told.get(job_id) != number:
                self._tell(job_id, there.get(job_id), number)
        self._told = found
        return {job_id for job_id in found if job_id in jobs and jobs[job_id].state is not JobState.CANCELLING}

    def _tell(self, job_id: str, there: int | None, number: int) -> None:
        self._log.error("server_is_older", job=job_id, attempt=number, known=there, todo=_TODO)
        if there is None:
            return
        text = f"the server knows attempt {there} only, and attempt {number} was given out: nothing is done; {_TODO}"

        def turn(job: Job, now_ms: int) -> Change:
            event = self._store.job_event(job, EventKind.NOTE, now_ms, cause=OLDER, level="error", text=text)
            return Change(job=job, events=(event,))

        try:
            self._store.change(job_id, turn)
        except TracksideError as error:
            self._log.warning("not_told", job=job_id, why=error.message)


def _carried(sight: Sight) -> Iterator[tuple[str, int]]:
    """What living workers say that they run."""
    for beat in sight.beats.values():
        if beat is not None and beat.role is Role.WORKER and beat.job is not None and beat.attempt is not None:
            yield beat.job, beat.attempt


def _folders(jobs: Path) -> Iterator[tuple[str, int]]:
    """Jobs with the newest attempt that has a folder here."""
    for attempts in _listed(jobs.glob("*/attempts")):
        numbers = [int(path.name) for path in _listed(attempts.iterdir()) if path.name.isdecimal()]
        yield attempts.parent.name, max(numbers, default=0)


def _listed(found: Iterable[Path]) -> list[Path]:
    try:
        return list(found)
    except OSError:
        return []
