"""`trackside`: the commands put together, and the one place where errors become exit codes.

0 done; 1 it failed; 2 wrong input, setting or state: nothing was changed; 3 no server; 124 `wait` ran out of time;
130 Ctrl-C; 141 the reader of a pipe went away.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperGroup

from trackside.cli import control, doctor, drill, listing, live, metrics, output, rqinfo, services, show, submit
from trackside.cli.context import Globals
from trackside.cli.render import say
from trackside.errors import (
    BusUnavailable,
    ConfigurationError,
    IllegalTransition,
    InvalidJob,
    NotFound,
    TracksideError,
)

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NO_SERVER: Final = 3
EXIT_INTERRUPTED: Final = 130
EXIT_PIPE: Final = 141
_USAGE_ERRORS: Final = (ConfigurationError, InvalidJob, NotFound, IllegalTransition)


def exit_code(error: TracksideError) -> int:
    """The exit code an error stands for."""
    if isinstance(error, BusUnavailable):
        return EXIT_NO_SERVER
    return EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED


class Commands(TyperGroup):
    """The commands, with errors of ours turned into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TracksideError as error:
            code = exit_code(error)
            hint = "" if code != EXIT_NO_SERVER or "trackside up" in error.message else " (`trackside up` starts one)"
            say(f"trackside: {error.message}{hint}")
            raise typer.Exit(code) from error
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _drop_stdout()
            raise typer.Exit(EXIT_PIPE) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable in a pipe, and rich is not imported for it
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from trackside import __version__

        typer.echo(f"trackside {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    home: Annotated[
        Path | None, typer.Option("--home", help="Directory of data, sockets and secrets; default TRACKSIDE_HOME.")
    ] = None,
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run PyTorch training on the GPUs you own, and nothing gets lost.

    Exit codes: 0 done, 1 it failed, 2 wrong input or setting, 3 no server, 124 `wait` ran out of time, 130 Ctrl-C.
    """
    ctx.obj = Globals(home=home)


for group in (submit, listing, show, output, metrics, control, live, services, rqinfo, doctor, drill):
    group.add_to(app)


def main() -> NoReturn:
    """The console script."""
    try:
        try:
            app(prog_name="trackside")
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before the first command had begun
        code: Any = EXIT_INTERRUPTED
    except BrokenPipeError:  # at the last flush
        _drop_stdout()
        code = EXIT_PIPE
    except SystemExit as end:
        code = end.code
    sys.exit(code)


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
