"""Jobs of which there is more than the server knows, and no ledger to restore them from: nothing is done about them.

What tells is a worker that carries a newer attempt than the record has, and, for a supervisor that has no ledger yet,
the folders of jobs on its host. Such a job is not placed, not taken for lost and not decided about: it would run a
second time. It is said once each time it is found, and people decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from trackside import logs
from trackside.bus import keys
from trackside.errors import DecodeError, TracksideError
from trackside.models import EventKind, Job, JobState, Role
from trackside.store import Change, Store
from trackside_supervisor.older import ahead, number
from trackside_supervisor.watch import Sight

OLDER: Final = "server is older"
_TODO: Final = "restore the server's data from a backup, or cancel the job and submit it again"
_NAMED: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What shows that the server is behind of a job: numbers of attempts. A new fact needs a default."""

    there: int  # the newest that the server knows
    carried: int | None = None  # by a living worker
    on_disk: int | None = None  # with a folder on the supervisor's host, where there was no ledger

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Facts:
        """The facts in a recorded note's inputs; what a later version added is passed over."""
        return cls(**{each.name: inputs[each.name] for each in fields(cls) if inputs.get(each.name) is not None})


def judge(facts: Facts) -> int | None:
    """The attempt that was given out and that the server does not know; None: it knows all that there is."""
    given = max(facts.carried or 0, facts.on_disk or 0)
    return given if given > facts.there else None


def told(facts: Facts) -> dict[str, Any]:
    """What is told of a job that is left alone; nothing where it is not."""
    given = judge(facts)
    if given is None:
        return {}
    text = f"the server knows attempt {facts.there} only, and attempt {given} was given out: nothing is done; {_TODO}"
    return {"given": given, "text": text}


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
                there[job_id] = number(raw, otherwise=folders[job_id])  # nothing is done about that job anyway
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
        told: dict[str, int] = {}
        for job_id, given in found.items():
            if self._told.get(job_id) != given:
                newest = max((each for name, each in carried if name == job_id), default=None)
                facts = Facts(there=there.get(job_id) or 0, carried=newest, on_disk=dict(on_disk).get(job_id))
                if not self._tell(job_id, facts, known=there.get(job_id) is not None):
                    continue
            told[job_id] = given
        self._told = told
        return {job_id for job_id in found if job_id in jobs and jobs[job_id].state is not JobState.CANCELLING}

    def _tell(self, job_id: str, facts: Facts, *, known: bool) -> bool:
        """Whether it is told; what the server did not take is told again with the next look."""
        there = facts.there if known else None
        self._log.error("server_is_older", job=job_id, attempt=judge(facts), known=there, todo=_TODO)
        if not known:
            return True

        def turn(job: Job, now_ms: int) -> Change | None:
            now = replace(facts, there=job.attempt)
            if judge(now) is None:  # it has come back meanwhile
                return None
            inputs = {name: value for name, value in asdict(now).items() if value is not None}
            event = self._store.job_event(
                job, EventKind.NOTE, now_ms, cause=OLDER, level="error", inputs=inputs, **told(now)
            )
            return Change(job=job, events=(event,))

        try:
            self._store.change(job_id, turn)
        except TracksideError as error:
            self._log.warning("not_told", job=job_id, why=error.message)
            return isinstance(error, DecodeError)  # such a record takes nothing
        return True


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
