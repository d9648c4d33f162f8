"""`submit`: check everything here, where the mistake can be named, and only then put the job on the bus."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from trackside.cli import parse
from trackside.cli.context import find_jobs, open_store, settings_of, who
from trackside.cli.options import choice, count
from trackside.cli.render import print_json, record, say, size
from trackside.cli.sending import sending
from trackside.errors import InvalidJob

if TYPE_CHECKING:
    from trackside.cli.program import Found
    from trackside.config import Settings
    from trackside.models import Job, JobSpec, Program
    from trackside.store import Store


class Device(StrEnum):
    """What a job may run on."""

    ANY = "any"
    CPU = "cpu"
    GPU = "gpu"


class Priority(StrEnum):
    """Who goes first when a slot is free."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class SubmitCommand(TyperCommand):
    """`submit`, whose command line is shared with the program's own."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "TARGET", "[-- ARGS...]"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if type(error).__name__ == "NoSuchOption" and "--" not in given:
                name = getattr(error, "option_name", "of that name")
                raise InvalidJob(
                    f"submit has no option {name}: options of the program itself stand after --, as in: "
                    "train.py -- --lr 0.1; `trackside submit -h` lists its own"
                ) from error
            raise


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command(cls=SubmitCommand)(submit)


def submit(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET [-- ARGS...]",
            show_default=False,
            help="A .py script or package.module:function (not with -m); what follows -- goes to the program.",
        ),
    ] = None,
    module: Annotated[str | None, typer.Option("-m", "--module", help="Run this module, as python -m does.")] = None,
    name: Annotated[str | None, typer.Option(help="For people; default: the program's name.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="K=V", help="A parameter: JSON, else text. Repeatable.")
    ] = None,
    params_file: Annotated[Path | None, typer.Option(help="A JSON object of parameters; --param wins.")] = None,
    retries: Annotated[
        int | None,
        count("--retries", "Failures made good; default TRACKSIDE_RETRIES."),
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Running time of all attempts: 90, 90s, 15m, 2h.")] = None,
    python: Annotated[Path | None, typer.Option(help="Run it with this interpreter.")] = None,
    attempt_timeout: Annotated[str | None, typer.Option(help="Running time of each attempt: 90, 90s, 15m, 2h.")] = None,
    stall_limit: Annotated[
        str | None,
        typer.Option(metavar="TIME|none", help="No step for this long is a hang: 90s, 45m, none; default: learned."),
    ] = None,
    priority: Annotated[
        Priority,
        choice("--priority", Priority, "Who goes first when a slot is free."),
    ] = Priority.NORMAL,
    after: Annotated[
        list[str] | None, typer.Option(metavar="JOB", help="Wait until this job has succeeded. Repeatable.")
    ] = None,
    device: Annotated[
        Device,
        choice("--device", Device, "What it may run on."),
    ] = Device.ANY,
    job_id: Annotated[
        str | None, typer.Option("--id", metavar="JOB_ID", help="Its id; submitting the same again adds nothing.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder to send along; default: the script's.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end and exit as `trackside wait` does.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record instead of the id.")] = False,
) -> None:
    """Put a job on the bus and print its id.

    The script's folder is sent along, so later edits do not change the job. Options of the program stand after --:
    trackside submit train.py --retries 2 -- --lr 0.1

    --json: the record, {"id", "name", "state", "spec", "created_at_ms", ...}.
    """
    settings = settings_of(ctx)
    found = _find(words or [], module, root)
    title = parse.name(name or found.name)
    new_id = _id(job_id, title)
    spec = _spec(
        settings, found.program, params=parse.params(param or [], params_file, max_bytes=settings.params_max_bytes),
        python=python, device=device, retries=retries, timeout=timeout, attempt_timeout=attempt_timeout,
        stall_limit=stall_limit, priority=priority, after=after or [],
    )  # fmt: skip
    spec, data = _pack(settings, found, spec)
    store = open_store(settings)
    with sending(store, new_id) as on_its_way:
        job = _enqueue(store, new_id, title, spec, data)
        on_its_way.arrived = True
        _tell(job, as_json=as_json, wait=wait)
        if wait:
            raise typer.Exit(_follow(store, job, as_json=as_json))


def _find(words: list[str], module: str | None, root: Path | None) -> Found:
    """The program that was meant; the words behind it are its own, behind a module all of them are."""
    from trackside.cli import program

    if module is not None:
        return program.find(None, module, root, tuple(words))
    if not words:
        raise InvalidJob("what shall run? Give a .py script, package.module:function, or -m module")
    return program.find(words[0], None, root, tuple(words[1:]))


def _id(wanted: str | None, title: str) -> str:
    from trackside.ids import check_job_id, new_job_id

    return new_job_id(title) if wanted is None else check_job_id(wanted)


def _spec(
    settings: Settings,
    program: Program,
    *,
    params: dict[str, Any],
    python: Path | None,
    device: Device,
    retries: int | None,
    timeout: str | None,
    attempt_timeout: str | None,
    stall_limit: str | None,
    priority: Priority,
    after: list[str],
) -> JobSpec:
    """What the options say, each one checked; the snapshot is still to come."""
    from trackside.models import JobSpec

    return JobSpec(
        program=program,
        params=params,
        python=None if python is None else _interpreter(python),
        device=device.value,
        retries=_retries(settings.retries if retries is None else retries),
        timeout_s=None if timeout is None else parse.duration_s(timeout, "--timeout"),
        attempt_timeout_s=None if attempt_timeout is None else parse.duration_s(attempt_timeout, "--attempt-timeout"),
        stall_limit_s=None if stall_limit is None else parse.stall_limit_s(stall_limit),
        priority=priority.value,
        after=_parents(settings, after),
        submitted_by=who(),
    )


def _pack(settings: Settings, found: Found, spec: JobSpec) -> tuple[JobSpec, bytes | None]:
    """The spec with its snapshot, and the snapshot's bytes."""
    if found.root is None:
        say("no folder is sent along: the module must be installed where the job runs")
        return spec, None
    from trackside.snapshots import pack
    from trackside.wording import counted

    home = settings.home.resolve()
    own = [f"/{home.relative_to(found.root)}/"] if found.root in home.parents else []
    snapshot = pack(found.root, max_bytes=settings.snapshot_max_bytes, extra_ignores=own)
    say(f"sending {counted(snapshot.files, 'file')} of {found.root} ({size(len(snapshot.data))} packed)")
    return replace(spec, snapshot=snapshot.sha256), snapshot.data


def _enqueue(store: Store, job_id: str, name: str, spec: JobSpec, data: bytes | None) -> Job:
    """Put the job on the bus; an id that stands for something else is refused."""
    job = store.submit(job_id, name, spec, data)
    if replace(job.spec, submitted_by=spec.submitted_by) != spec:
        from trackside import wording

        raise InvalidJob(
            f"job {job_id!r} is there already, with another program, parameters or files "
            f"({wording.program(job.spec)}): choose another --id"
        )
    return job


def _follow(store: Store, job: Job, *, as_json: bool) -> int:
    """Wait for its end; the exit code."""
    from trackside.cli.control import follow

    return follow(store, [job.id], limit_s=None, as_json=as_json)


def _tell(job: Job, *, as_json: bool, wait: bool) -> None:
    """The id, or the record where nobody waits: who waits gets the record of the end."""
    if not as_json:
        print(job.id, flush=True)
    elif not wait:
        print_json(record(job))
    if not wait:
        say(f"follow it: trackside logs -f {job.id}")


def _parents(settings: Settings, texts: list[str]) -> tuple[str, ...]:
    """The ids of the jobs to wait for, each once, in the order given."""
    if not texts:
        return ()
    store = open_store(settings)
    return tuple(job.id for job in find_jobs(store, texts))


def _retries(count: int) -> int:
    if not 0 <= count <= 1000:
        raise InvalidJob(f"--retries is {count}: give 0 to 1000")
    return count


def _interpreter(path: Path) -> str:
    # Not resolved: a virtual environment's python is a link, and the link's place is what makes it that environment.
    absolute = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 -- `resolve` would follow the link
    if not absolute.is_file() or not os.access(absolute, os.X_OK):
        raise InvalidJob(f"--python {path} is no program that can be run here: give an interpreter's path")
    return str(absolute)
