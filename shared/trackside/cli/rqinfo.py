"""`info`, `url`: the same queues as RQ's own tool sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from enum import StrEnum
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import typer

from trackside.cli.context import connect, settings_of, url_of
from trackside.cli.options import choice
from trackside.cli.render import say

# Only the option: older RQ reads job data with pickle, which must never be done with what others wrote.
_SERIALIZER: Final = ("--serializer", "json")


class UrlUser(StrEnum):
    """The users whose URL may be handed to other programs."""

    OPERATOR = "operator"
    DASHBOARD = "dashboard"


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(info)
    app.command()(url)


def info(ctx: typer.Context) -> None:
    """Show queues and workers as `rq info` does.

    Its options may follow.

    For example: trackside info --only-queues
    """
    settings = settings_of(ctx)
    address = url_of(settings, "operator")
    connect(settings, "operator").ping()
    password = urlsplit(address).password
    hidden = {text for text in (address, password, password and unquote(password)) if text}
    # The URL goes by the environment: an argument would show its password to everybody who lists processes.
    process = subprocess.Popen(
        [sys.executable, "-m", "rq.cli", "info", *_SERIALIZER, *ctx.args],
        env={**os.environ, "RQ_REDIS_URL": address},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None  # noqa: S101 -- asked for above
    try:
        for line in process.stdout:
            for secret in hidden:
                line = line.replace(secret, "***")  # noqa: PLW2901 -- one secret after another
            print(line, end="", flush=True)
        raise typer.Exit(min(1, process.wait()) if process.wait() >= 0 else 1)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
        process.stdout.close()


def url(
    ctx: typer.Context,
    user: Annotated[
        UrlUser,
        choice("--user", UrlUser, "operator reads RQ's keys only, dashboard everything."),
    ] = UrlUser.OPERATOR,
    tcp: Annotated[bool, typer.Option("--tcp", help="For programs that cannot use a unix socket.")] = False,
) -> None:
    """Print a URL of the server, for example for `rq info --url`."""
    settings = settings_of(ctx)
    address = url_of(settings, user.value, tcp=tcp)
    if settings.redis_url is not None:
        say("trackside: this is TRACKSIDE_REDIS_URL, whatever --user and --tcp say")
    if urlsplit(address).password:
        say("trackside: this URL contains a password: keep it out of logs and of other people's sight")
    print(address)
