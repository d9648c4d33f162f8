"""What a command stands on: the settings, the connection, and finding the job that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from trackside.errors import BusUnavailable, ConfigurationError, InvalidJob, NotFound, ServerError

if TYPE_CHECKING:
    from trackside.bus.client import Client
    from trackside.config import Settings
    from trackside.models import Attempt, Job
    from trackside.store import Store

_CANDIDATES_SHOWN = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Globals:
    """The options that stand before the command."""

    home: Path | None = None


def settings_of(ctx: typer.Context) -> Settings:
    """The settings; read only by commands, so that `--help` works under a wrong environment."""
    from trackside.config import Settings

    given = ctx.find_object(Globals) or Globals()
    settings = Settings.from_environ(home=given.home)
    home = settings.home.expanduser().absolute()
    if home.exists() and not home.is_dir():
        raise ConfigurationError(f"the home {home} is no folder: give another by --home or TRACKSIDE_HOME")
    return replace(settings, home=home)


def url_of(settings: Settings, user: str, *, tcp: bool = False) -> str:
    """The URL of the server in use, with its password; raises BusUnavailable where no server is known."""
    from trackside.server import client_url

    try:
        return client_url(settings, user, tcp=tcp)
    except ServerError as error:
        raise BusUnavailable(error.message) from error


def connect(settings: Settings, user: str = "submitter") -> Client:
    """A client for the server in use."""
    from trackside.bus import client

    return client.connect(url_of(settings, user), name="trackside-cli")


def store_of(ctx: typer.Context) -> Store:
    """The jobs on the bus, as the command line may use them."""
    return open_store(settings_of(ctx))


def open_store(settings: Settings) -> Store:
    """The jobs on the bus; changes are signed with the person's name."""
    from trackside.store import Store

    return Store(connect(settings), by=f"cli:{who()}")


def who() -> str:
    """user@host, for people."""
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no such user in a bare container
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def find_job(store: Store, text: str) -> Job:
    """The job with this id, else of this name, else the only one whose id starts with it.

    Of several with one name, as `retry` makes them, the only one that has not ended is meant.
    """
    from trackside.bus import keys
    from trackside.ids import JOB_ID

    if JOB_ID.fullmatch(text):
        try:
            return store.job(text)
        except NotFound:
            pass
    ids = store.job_ids()
    with store.client.pipeline(transaction=False) as pipe:
        for job_id in ids:
            pipe.hget(keys.job(job_id), "name")
        names: list[bytes | None] = pipe.execute()
    wanted = text.encode("utf-8", "surrogateescape")
    found = [job_id for job_id, name in zip(ids, names, strict=True) if text and name == wanted]
    if len(found) > 1:
        live = set(store.live_job_ids()).intersection(found)
        found = sorted(live) if len(live) == 1 else found
    found = found or [job_id for job_id in ids if text and job_id.startswith(text)]
    if not found:
        raise NotFound(f"no job {text!r}: `trackside ls --all` lists the jobs", job=text)
    if len(found) > 1:
        more = f" and {len(found) - _CANDIDATES_SHOWN} more" if len(found) > _CANDIDATES_SHOWN else ""
        shown = ", ".join(found[:_CANDIDATES_SHOWN])
        raise InvalidJob(f"{text!r} fits {len(found)} jobs: {shown}{more}; give more of the id", job=text)
    return store.job(found[0])


def find_jobs(store: Store, texts: Iterable[str]) -> list[Job]:
    """The jobs that were meant, each once; all are looked up before anything is done with the first."""
    return list({job.id: job for job in (find_job(store, text) for text in texts)}.values())


def newest_attempts(store: Store, jobs: Iterable[Job]) -> dict[str, Attempt]:
    """The newest attempt of each job that has one, in one round trip."""
    from trackside.bus import keys
    from trackside.codec import decode_fields
    from trackside.errors import DecodeError
    from trackside.models import Attempt

    started = [job for job in jobs if job.attempt]
    with store.client.pipeline(transaction=False) as pipe:
        for job in started:
            pipe.hgetall(keys.attempt(job.id, job.attempt))
        answers: list[dict[bytes, bytes]] = pipe.execute()
    found: dict[str, Attempt] = {}
    for job, raw in zip(started, answers, strict=True):
        try:
            found[job.id] = decode_fields(Attempt, raw)
        except DecodeError:
            continue
    return found
