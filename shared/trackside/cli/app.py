"""`trackside`: the commands put together, and the one place where errors become exit codes.

0 done; 1 it failed; 2 wrong input, setting or state: nothing was changed of what was refused; 3 no server; 124 `wait`
ran out of time; 130 Ctrl-C; 141 the reader of a pipe went away.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, cast

import typer
from typer.core import TyperGroup

from trackside.cli import control, doctor, drill, listing, live, metrics, output, rqinfo, services, show, submit
from trackside.cli.context import Globals
from trackside.cli.render import say
from trackside.errors import (
    AlreadyRunning,
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
_USAGE_ERRORS: Final = (ConfigurationError, InvalidJob, NotFound, IllegalTransition, AlreadyRunning)
# What the library raises for a wrong command line: its home moves with the versions, this way to it does not.
_Misuse: Final = cast(type[Exception], typer.BadParameter.__mro__[1])


def exit_code(error: TracksideError) -> int:
    """The exit code an error stands for."""
    if isinstance(error, BusUnavailable):
        return EXIT_NO_SERVER
    return EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED


class Commands(TyperGroup):
    """The commands, with errors turned into one line and an exit code."""

    def make_context(self, info_name: Any, args: Any, *rest: Any, **extra: Any) -> Any:
        with _told_in_one_line():
            _check_text(args)
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _told_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except TracksideError as error:
        code = exit_code(error)
        hint = "" if code != EXIT_NO_SERVER or "trackside up" in error.message else " (`trackside up` starts one)"
        say(f"trackside: {error.message}{hint}")
        raise typer.Exit(code) from error
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except _Misuse as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no error: it carries the help
            raise
        say(f"trackside: {_misuse(error)}")
        raise typer.Exit(EXIT_USAGE) from error
    except OSError as error:
        raise typer.Exit(_tell_os_error(error)) from error


def _misuse(error: Any) -> str:
    """What is wrong on the command line, in our own words, and where it stands what it takes."""
    kind, context = type(error).__name__, getattr(error, "ctx", None)
    said = " ".join(error.format_message().split()).rstrip(".")
    said = f"{said[:1].lower()}{said[1:]}"
    if kind == "NoSuchOption":
        said = f"there is no option {error.option_name}"
    elif kind == "MissingParameter" and error.param is not None:
        said = f"{error.param.metavar or error.param.name} is missing"
    elif "extra argument" in said:
        said = f"more words than it takes: {said.rpartition('(')[2].rstrip(')')}"
    command = "trackside" if context is None else context.command_path
    return f"{said}; `{command} -h` tells what it takes"


def _check_text(words: list[str]) -> None:
    """Raise ConfigurationError for a word that cannot be written to a record."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"{word!r} on the command line is no UTF-8: give it as UTF-8 text") from None


def _tell_os_error(error: OSError) -> int:
    """Say in one line what the system refused; the exit code."""
    if isinstance(error, BrokenPipeError):
        _drop_stdout()
        return EXIT_PIPE
    if isinstance(error, FileNotFoundError) and not _is_somewhere():
        say("trackside: the current folder was removed: change into one that is there")
        return EXIT_USAGE
    if error.filename is None:  # of a file it would have its name
        _drop_stdout()
        say(f"trackside: the output cannot be written ({error.strerror or error}): send it to where it can")
    else:
        say(f"trackside: {error.filename}: {error.strerror or error}; mend that and try again")
    return EXIT_FAILED


def _is_somewhere() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


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
    _fill_gaps()
    code: Any = 0
    try:
        app(prog_name="trackside")
    except KeyboardInterrupt:  # before the first command had begun
        code = EXIT_INTERRUPTED
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _tell_os_error(error) if code in (0, None) else code
        _drop_stdout()
    sys.exit(code)


def _fill_gaps() -> None:
    """Put something in the place of a closed stdout or stderr: the one refuses what is written, the other loses it.

    Else the next socket or file gets that number, and what we or our children print goes there.
    """
    for name, number, mode in (("stdout", 1, os.O_RDONLY), ("stderr", 2, os.O_WRONLY)):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, mode)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _drop_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain."""
    with suppress(OSError):  # a stdout that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
