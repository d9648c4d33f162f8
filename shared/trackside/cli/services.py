"""`up`, `down`, `trainer`, `supervisor`, `dashboard`, `health`, `demo`: starting, stopping and asking the services."""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trackside.cli.context import connect, settings_of, url_of
from trackside.cli.parse import one_of
from trackside.cli.render import say
from trackside.errors import BusError, ConfigurationError, TracksideError
from trackside.slotgrammar import FORMS, parse_slots

if TYPE_CHECKING:
    from trackside.config import Settings
    from trackside.launcher import Ready

_GROUP: Final = "trackside.services"
_HEALTH_LIMIT_S: Final = 2.0
Slots = Annotated[
    str, typer.Option(metavar=FORMS, help="What to offer: GPUs if any, N CPU shares, all GPUs, the first N GPUs.")
]


class ServiceRole(StrEnum):
    """What `health` can be asked about."""

    SUPERVISOR = "supervisor"
    TRAINER = "trainer"
    DASHBOARD = "dashboard"
    REDIS = "redis"


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (up, down, demo, trainer, supervisor, dashboard, health):
        app.command()(command)


def up(
    ctx: typer.Context,
    slots: Slots = "auto",
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Leave the dashboard out.")] = False,
) -> None:
    """Run everything on this machine until Ctrl-C.

    That is the server, the supervisor, the trainer and the dashboard.
    """
    settings = settings_of(ctx)
    parse_slots(slots)
    from trackside import launcher

    raise typer.Exit(launcher.up(settings, slots=slots, dashboard=not no_dashboard, on_ready=_tell_ready))


def _tell_ready(ready: Ready) -> None:
    with suppress(OSError):  # a stdout that takes nothing is no reason not to serve
        _print_ready(ready)


def _print_ready(ready: Ready) -> None:
    print(f"Trackside runs in {ready.home} on {ready.server}.")
    if ready.dashboard_url is not None:
        print(f"Dashboard: {ready.dashboard_url}")
    print("Submit a job: trackside submit train.py    Watch: trackside top    Stop: Ctrl-C", flush=True)


def down(ctx: typer.Context) -> None:
    """Stop what `trackside up` runs for this home.

    Running jobs save at their next step and go on after the next start.
    """
    from trackside import upfile

    stopped = upfile.down(settings_of(ctx))
    print("stopped" if stopped else "nothing runs for this home")


def demo(
    ctx: typer.Context, keep: Annotated[bool, typer.Option("--keep", help="Leave its home for looking around.")] = False
) -> None:
    """See two real trainings, one of them killed and resumed.

    In a home of its own, removed afterwards.
    """
    settings = settings_of(ctx)
    from trackside.cli.demo import run

    raise typer.Exit(run(settings, keep=keep))


def trainer(ctx: typer.Context, slots: Slots = "auto") -> None:
    """Run this machine's agent and workers in the foreground."""
    parse_slots(slots)
    raise typer.Exit(_serve(settings_of(ctx), "trainer", slots=slots))


def supervisor(ctx: typer.Context) -> None:
    """Run a supervisor in the foreground.

    Of several, the one that holds the lease decides.
    """
    raise typer.Exit(_serve(settings_of(ctx), "supervisor"))


def dashboard(ctx: typer.Context) -> None:
    """Run the dashboard in the foreground."""
    raise typer.Exit(_serve(settings_of(ctx), "dashboard"))


def _serve(settings: Settings, name: str, **options: Any) -> int:
    """Find the service by its entry point and run it with its own user's connection."""
    if settings.redis_url is None:
        from trackside.bus.client import without_password

        # The password stays in its file, so that settings can be logged and passed on.
        url, password_file = without_password(url_of(settings, name)), settings.home / "secrets" / name
        settings = replace(settings, redis_url=url, redis_password_file=password_file)
    serve = entry(name)
    known = inspect.signature(serve).parameters
    return int(serve(settings, **{key: value for key, value in options.items() if key in known}) or 0)


def entry(name: str, group: str = _GROUP) -> Any:
    """What a service offers at its entry point; raises TracksideError with what to install."""
    from importlib.metadata import entry_points

    install = f'pip install "trackside[{name}]"'
    found = entry_points(group=group, name=name)
    if not found:
        raise TracksideError(f"the {name} is not installed: {install}")
    try:
        return next(iter(found)).load()
    except ModuleNotFoundError as error:
        raise TracksideError(f"the {name} needs {error.name}, which is not installed: {install}") from error


def health(
    ctx: typer.Context,
    role: Annotated[
        ServiceRole,
        typer.Argument(
            metavar="|".join(ServiceRole), parser=one_of("the service", ServiceRole), help="Which service of this host."
        ),
    ],
) -> None:
    """Tell whether a service of this host is well.

    Exit code 0 if it is, else 1 with a line: for container health checks.
    """
    settings = settings_of(ctx)
    problem = _dashboard_problem(settings) if role is ServiceRole.DASHBOARD else _bus_problem(settings, role)
    if problem is not None:
        say(f"trackside: {role.value} is not well: {problem}")
        raise typer.Exit(1)
    print("ok")


def _bus_problem(settings: Settings, role: ServiceRole) -> str | None:
    from trackside.bus import beats
    from trackside.models import Role

    try:
        client = connect(settings)
        if role is ServiceRole.REDIS:
            client.ping()
            return None
        wanted = Role.AGENT if role is ServiceRole.TRAINER else Role.SUPERVISOR
        host = settings.host_name
        found = beats.read(client)
    except (BusError, ConfigurationError) as error:
        return error.message
    if any(beat is not None and beat.role is wanted and beat.host == host for beat in found.values()):
        return None
    return f"no beat from {host} within the last {settings.beat_ttl_s:g} s; look at its log"


def _dashboard_problem(settings: Settings) -> str | None:
    import http.client

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.dashboard_host, settings.dashboard_host)  # noqa: S104 -- compared, not bound
    port = _dashboard_port(settings)
    connection = http.client.HTTPConnection(host, port, timeout=_HEALTH_LIMIT_S)
    try:
        connection.request("GET", "/_stcore/health")
        answer = connection.getresponse()
        text = answer.read(64)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer from {host}:{port}: {error}; look at its log"
    finally:
        connection.close()
    if answer.status == http.client.OK and text.strip() == b"ok":
        return None
    return f"{host}:{port} answers {answer.status}; look at its log"


def _dashboard_port(settings: Settings) -> int:
    """The port it serves on: `trackside up` takes another where the wanted one is in use."""
    from urllib.parse import urlsplit

    from trackside.upfile import running

    up = running(settings)
    url = None if up is None else up.dashboard_url
    return urlsplit(url or "").port or settings.dashboard_port
