"""`doctor`: what this machine has and what it lacks, each with what to do about it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from trackside.cli.context import connect, settings_of, url_of
from trackside.cli.render import Column, plain, print_json, print_table, record, say
from trackside.errors import BusError, BusUnavailable, ConfigurationError, ServerError

if TYPE_CHECKING:
    from trackside.bus.client import Client
    from trackside.config import Settings

_NEEDED: Final = ("orjson", "redis", "rich", "rq", "structlog", "tenacity", "typer")
_OPTIONAL: Final = {"torch": "trainer", "nvidia-ml-py": "trainer", "streamlit": "dashboard"}
_JOBS_LOOKED_AT: Final = 1000
_LOW_DISK_BYTES: Final = 2 * 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    todo: str | None = None


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(doctor)


def doctor(
    ctx: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False
) -> None:
    """Check this machine: programs, server, services.

    Exit code 1 if something needed is missing.

    --json: {"checks": [{"name", "status", "message", "todo"}]}; status is ok, warn or fail.
    """
    checks = list(_checks(settings_of(ctx)))
    failed = sum(check.status == "fail" for check in checks)
    if as_json:
        print_json({"checks": [record(check) for check in checks]})
    else:
        columns = [Column(title="WHAT"), Column(title=""), Column(title="FOUND")]
        rows = [(c.name, c.status, f"{c.message}{f': {c.todo}' if c.todo else ''}") for c in checks]
        print_table(columns, rows)
        say(f"{failed} to repair" if failed else "nothing needed is missing")
    raise typer.Exit(1 if failed else 0)


def _checks(settings: Settings) -> Iterator[Check]:
    yield _python()
    yield from _packages()
    yield _home(settings.home)
    yield _server_program(settings)
    answered, client = _server(settings)
    yield answered
    if client is not None:
        yield _writes(client)
        yield from _services(client)
        yield from _unknown_jobs(settings, client)
    yield _gpu_driver()


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    return Check(name="python", status="ok", message=f"{text} ({sys.executable})")


def _packages() -> Iterator[Check]:
    for name in _NEEDED:
        found = _version(name)
        if found is None:
            yield Check(name=name, status="fail", message="not installed", todo="pip install --upgrade trackside")
        else:
            yield Check(name=name, status="ok", message=found)
    for name, extra in _OPTIONAL.items():
        found = _version(name)
        if found is None:
            todo = f'pip install "trackside[{extra}]" where the {extra} runs'
            yield Check(name=name, status="warn", message="not installed", todo=todo)
        else:
            yield Check(name=name, status="ok", message=found)


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _home(home: Path) -> Check:
    place = home
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        todo = "choose another with --home or TRACKSIDE_HOME"
        return Check(name="home", status="fail", message=f"{home} cannot be written", todo=todo)
    free = shutil.disk_usage(place).free
    message = f"{home}, {free / 1024**3:.1f} GiB free"
    if free < _LOW_DISK_BYTES:
        return Check(name="home", status="warn", message=message, todo="make room: checkpoints and journals need it")
    return Check(name="home", status="ok", message=message)


def _server_program(settings: Settings) -> Check:
    from trackside.server import choose_binary

    try:
        binary = choose_binary()
    except ServerError as error:
        status: Literal["ok", "fail"] = "fail" if settings.redis_url is None else "ok"
        note = error.message if settings.redis_url is None else "none here, and none needed: TRACKSIDE_REDIS_URL is set"
        return Check(name="server program", status=status, message=note)
    message = f"{binary.flavour} {binary.version} from {binary.origin} ({binary.path})"
    return Check(name="server program", status="ok", message=message)


def _server(settings: Settings) -> tuple[Check, Client | None]:
    """Whether a server answers; none known is no fault of this machine, one that does not answer is."""
    from trackside.bus.client import without_password

    try:
        url = url_of(settings, "submitter")
    except BusUnavailable:
        return Check(name="server", status="warn", message="none runs", todo="start one with `trackside up`"), None
    except ConfigurationError as error:
        return Check(name="server", status="fail", message=error.message), None
    try:
        client = connect(settings)
        client.ping()
        message = f"{_who_answers(client)} at {without_password(url)}"
        return Check(name="server", status="ok", message=message), client
    except (BusError, ConfigurationError) as error:
        return Check(name="server", status="fail", message=f"{without_password(url)}: {error.message}"), None


def _writes(client: Client) -> Check:
    """A server whose memory or disk is full answers as ever, until it is asked to write."""
    from trackside.bus.client import check_writes

    try:
        check_writes(client)
    except BusError as error:
        return Check(name="writes", status="fail", message=error.message)
    return Check(name="writes", status="ok", message="the server takes them")


def _who_answers(client: Client) -> str:
    answer: Any = client.execute_command("HELLO")
    if isinstance(answer, list | tuple):
        answer = dict(zip(answer[::2], answer[1::2], strict=False))
    facts = {_text(key): _text(value) for key, value in answer.items()} if isinstance(answer, dict) else {}
    return plain(f"{facts.get('server', 'a server')} {facts.get('version', '')}")


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _services(client: Client) -> Iterator[Check]:
    from trackside.bus import beats
    from trackside.models import Role

    found = beats.read(client)
    for role, command in ((Role.SUPERVISOR, "supervisor"), (Role.AGENT, "trainer"), (Role.WORKER, "trainer")):
        alive = [beat for beat in found.values() if beat is not None and beat.role is role]
        silent = sum(beat is None and member.startswith(f"{role.value}:") for member, beat in found.items())
        told = f", {silent} silent" if silent else ""
        if alive:
            names = ", ".join(plain(beat.name) for beat in alive[:4]) + (" ..." if len(alive) > 4 else "")
            status: Literal["ok", "warn"] = "warn" if silent else "ok"
            todo = "see `trackside ps`" if silent else None
            yield Check(name=role.value, status=status, message=f"{len(alive)} beating{told} ({names})", todo=todo)
        else:
            todo = f"start it with `trackside up` or `trackside {command}`"
            yield Check(name=role.value, status="warn", message=f"none beating{told}", todo=todo)


def _unknown_jobs(settings: Settings, client: Client) -> Iterator[Check]:
    """Jobs that ran on this host and that the server does not know: it has come back empty or older."""
    from trackside.bus import keys

    try:
        folders = sorted(path.name for path in (settings.data_dir / "jobs").iterdir())[-_JOBS_LOOKED_AT:]
    except OSError:
        return
    with client.pipeline(transaction=False) as pipe:
        for name in folders:
            pipe.exists(keys.job(name))
        there = pipe.execute() if folders else []
    unknown = [plain(name) for name, found in zip(folders, there, strict=True) if not found]
    if unknown:
        named = ", ".join(unknown[:4]) + (" ..." if len(unknown) > 4 else "")
        todo = "restore the server's data from a backup, or submit them again"
        message = f"{len(unknown)} that ran here are unknown to the server ({named})"
        yield Check(name="jobs", status="warn", message=message, todo=todo)


def _gpu_driver() -> Check:
    # The library is only opened: what the GPUs are is the trainer's to ask.
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return Check(name="GPU driver", status="ok", message="none: slots are CPU shares")
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        text = "NVIDIA driver library present"
    return Check(name="GPU driver", status="ok", message=plain(text))
