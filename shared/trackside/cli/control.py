"""`wait`, `cancel`, `pause`, `resume`, `retry`: what people ask of jobs that are on the bus."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final

import typer

from trackside.cli.context import find_job, find_jobs, settings_of, store_of, who
from trackside.cli.exits import TIMEOUT, USAGE
from trackside.cli.options import Jobs, OneJob
from trackside.cli.output import tell_lost
from trackside.cli.parse import duration_s, stall_limit_s
from trackside.cli.render import plain, print_json, record, say
from trackside.cli.sending import sending
from trackside.errors import BusUnavailable, IllegalTransition, InvalidJob, NotFound, TracksideError

if TYPE_CHECKING:
    from trackside.models import Job
    from trackside.store import Store

_BLOCK_S: Final = 1.0  # a lost event is made good by the look after this
_OUTAGE_LIMIT_S: Final = 60.0  # a server that is restarted is back long before


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (wait, cancel, pause, resume, retry):
        app.command()(command)


def wait(
    ctx: typer.Context,
    jobs: Jobs,
    timeout: Annotated[str | None, typer.Option(help="Give up after this: 90, 90s, 15m, 2h.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final records.")] = False,
) -> None:
    """Wait until jobs have ended.

    Exit code 0 if all succeeded, 1 if any did not, 124 on timeout.

    --json: {"jobs": [record, ...]}, the records as `trackside show --json` gives them under "job".
    """
    limit_s = None if timeout is None else duration_s(timeout, "--timeout")
    store = store_of(ctx)
    found = find_jobs(store, jobs)
    raise typer.Exit(follow(store, [job.id for job in found], limit_s=limit_s, as_json=as_json))


def follow(store: Store, job_ids: Sequence[str], *, limit_s: float | None, as_json: bool) -> int:
    """Tell each change of state on stderr until all jobs have ended; returns the exit code."""
    from trackside.bus import streams
    from trackside.models import JobState
    from trackside.retry import until_reachable

    gone: set[str] = set()
    deadline_s = None if limit_s is None else time.monotonic() + limit_s
    told: dict[str, JobState] = {}
    while True:
        # The stream's end is read before the records, so that no change falls between the two.
        left_s = None if deadline_s is None else deadline_s - time.monotonic()
        patience_s = _OUTAGE_LIMIT_S if left_s is None else max(0.0, min(_OUTAGE_LIMIT_S, left_s))
        try:
            cursor, now = until_reachable(
                lambda: (streams.newest_event_id(store.client), store.jobs(job_ids)),
                limit_s=patience_s,
                lost=tell_lost,
            )
        except BusUnavailable:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                return TIMEOUT
            raise
        for job in now:
            if told.get(job.id) is not job.state:
                told[job.id] = job.state
                say(f"{job.id}: {_state_line(job)}")
        for job_id in set(job_ids) - gone - {job.id for job in now}:
            gone.add(job_id)
            say(f"trackside: job {job_id} is no longer on the bus")
        if all(job.state.terminal for job in now):
            if as_json:
                print_json({"jobs": [record(job) for job in now]})
            succeeded = len(now) == len(job_ids) and all(job.state is JobState.SUCCEEDED for job in now)
            return 0 if succeeded else 1
        block_s = _BLOCK_S if deadline_s is None else min(_BLOCK_S, deadline_s - time.monotonic())
        if block_s <= 0:
            say("trackside: not all jobs have ended in time; `trackside ls` shows where they are")
            return TIMEOUT
        _sleep_until_event(store, cursor, set(job_ids), block_s)


def _sleep_until_event(store: Store, cursor: str, job_ids: set[str], block_s: float) -> None:
    from trackside.bus import streams

    until_s = time.monotonic() + block_s
    with suppress(BusUnavailable):  # where it lasts, the look that follows says so
        while (left_s := until_s - time.monotonic()) > 0:
            events = streams.read_events(store.client, cursor, block_s=left_s)
            if any(event is None or event.job in job_ids for _, event in events):
                return
            cursor = events[-1][0] if events else cursor


def _state_line(job: Job) -> str:
    return f"{job.state}" + (f" ({job.detail})" if job.detail else "")


def cancel(
    ctx: typer.Context,
    jobs: Jobs,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records.")] = False,
) -> None:
    """End jobs: at the next step where they run, else at once.

    Asking again does no harm, nor does a job that has ended. One that is not there keeps no other from being cancelled;
    exit code 2 then.

    --json: {"jobs": [record, ...]}.
    """
    store = store_of(ctx)
    done: dict[str, Job] = {}
    refused: list[TracksideError] = []
    for text in jobs:
        try:
            job, told = _cancelled(store, find_job(store, text))
        except (NotFound, InvalidJob) as error:
            refused.append(error)
            continue
        if not as_json and job.id not in done:
            print(plain(told), flush=True)  # at once: the server may be gone before the next
        done[job.id] = job
    if as_json:
        print_json({"jobs": [record(job) for job in done.values()]})
        sys.stdout.flush()
    for each in refused:
        say(f"trackside: {each.message}")
    if refused:
        raise typer.Exit(USAGE)


def _cancelled(store: Store, job: Job) -> tuple[Job, str]:
    """Ask for a job's end; its record and what to say. One that has ended stays as it is."""
    if not job.state.terminal:
        try:
            job = store.cancel(job.id)
        except IllegalTransition:  # it ended since it was looked up
            job = store.job(job.id)
        else:
            return job, f"{job.id} {_state_line(job)}"
    return job, f"{job.id} is {job.state} already: nothing to cancel"


def pause(
    ctx: typer.Context, job: OneJob, as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False
) -> None:
    """Stop a job at its next step with a checkpoint.

    Its slot is free then. --json: {"jobs": [record]}.
    """
    store = store_of(ctx)
    _print([store.pause(find_job(store, job).id)], as_json=as_json)


def resume(
    ctx: typer.Context,
    job: OneJob,
    checkpoint: Annotated[
        str | None, typer.Option("--from", metavar="CHECKPOINT", help="Go back to this one, as `show` lists them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Let a paused job go on from its newest checkpoint, or from an older one.

    --json: {"jobs": [record]}.
    """
    from trackside.cli import resumable

    store = store_of(ctx)
    found = find_job(store, job)
    resumable.check(settings_of(ctx), found, checkpoint)
    _print([store.resume(found.id, checkpoint)], as_json=as_json)


def retry(
    ctx: typer.Context,
    job: OneJob,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over, without the old job's checkpoints.")] = False,
    stall_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME|none", help="No step for this long is a hang: 90s, 45m, none; default: as before."),
    ] = None,
    job_id: Annotated[
        str | None, typer.Option("--id", metavar="JOB_ID", help="The new job's id; the same again adds nothing.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the new job's record instead of its id.")] = False,
) -> None:
    """Do a failed or cancelled job again, as a new job, and print its id.

    It has the same program, files and parameters and goes on from the old job's newest checkpoint.

    --json: the record, as `submit --json` gives it.
    """
    from trackside.ids import check_job_id, new_job_id

    store = store_of(ctx)
    old = find_job(store, job)
    new_id = new_job_id(old.name) if job_id is None else check_job_id(job_id)
    limit_s = None if stall_limit is None else stall_limit_s(stall_limit)
    with sending(store, new_id) as on_its_way:
        new = store.retry(old.id, new_id, fresh=fresh, stall_limit_s=limit_s, by=who())
        if limit_s not in (None, new.spec.stall_limit_s):
            raise InvalidJob(f"job {new_id!r} is there already, with another stall limit: choose another --id")
        if new.spec.retry_of != old.id:
            raise InvalidJob(f"job {new_id!r} is there already and is no retry of {old.id!r}: choose another --id")
        on_its_way.arrived = True
        _tell_new(new, as_json=as_json)


def _tell_new(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(record(job))
        return
    print(job.id, flush=True)
    start = f"goes on from {job.checkpoints[0].name}" if job.checkpoints else "starts over"
    say(f"{start}; follow it: trackside logs -f {job.id}")


def _print(jobs: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [record(job) for job in jobs]})
        return
    for job in jobs:
        print(plain(f"{job.id} {_state_line(job)}"))
