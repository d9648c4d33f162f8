"""How a command ends: every error as one line on stderr and an exit code.

0 done; 1 it failed; 2 wrong input, setting or state: nothing was changed of what was refused; 3 no server; 124 `wait`
ran out of time; 130 Ctrl-C; 141 the reader of a pipe went away; 143 SIGTERM, 129 SIGHUP where that is handled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import typer

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

FAILED: Final = 1
USAGE: Final = 2
NO_SERVER: Final = 3
TIMEOUT: Final = 124
INTERRUPTED: Final = 130
PIPE: Final = 141
_USAGE_ERRORS: Final = (ConfigurationError, InvalidJob, NotFound, IllegalTransition, AlreadyRunning)
# What the library raises for a wrong command line: its home moves with the versions, this way to it does not.
_Misuse: Final = cast(type[Exception], typer.BadParameter.__mro__[1])


def exit_code(error: TracksideError) -> int:
    """The exit code an error stands for."""
    if isinstance(error, BusUnavailable):
        return NO_SERVER
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAILED


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Errors of the body become one line, and the exit code they stand for."""
    try:
        yield
    except TracksideError as error:
        code = exit_code(error)
        hint = "" if code != NO_SERVER or "trackside up" in error.message else " (`trackside up` starts one)"
        say(f"trackside: {error.message}{hint}")
        raise typer.Exit(code) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except _Misuse as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no error: it carries the help
            raise
        say(f"trackside: {_misuse(error)}")
        raise typer.Exit(USAGE) from error
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


def check_text(words: list[str]) -> None:
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
        return PIPE
    if isinstance(error, FileNotFoundError) and not _is_somewhere():
        say("trackside: the current folder was removed: change into one that is there")
        return USAGE
    if error.filename is None:  # of a file it would have its name
        _drop_stdout()
        say(f"trackside: the output cannot be written ({error.strerror or error}): send it to where it can")
    else:
        say(f"trackside: {error.filename}: {error.strerror or error}; mend that and try again")
    return FAILED


def _is_somewhere() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


def flush_stdout(code: int | str | None) -> int | str | None:
    """Write out what is left; the exit code, which is another if that fails where all went well."""
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _tell_os_error(error) if code in (0, None) else code
        _drop_stdout()
    except KeyboardInterrupt:  # its reader does not read on
        code = INTERRUPTED
        _drop_stdout()
    return code


def fill_gaps() -> None:
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
