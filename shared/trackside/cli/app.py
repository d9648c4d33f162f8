"""`trackside`: the commands put together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from trackside.cli import control, doctor, drill, listing, live, metrics, output, rqinfo, services, show, submit
from trackside.cli.context import Globals
from trackside.cli.exits import INTERRUPTED, check_text, fill_gaps, flush_stdout, told_in_one_line


class Commands(TyperGroup):
    """The commands, with errors turned into one line and an exit code."""

    def make_context(self, info_name: Any, args: Any, *rest: Any, **extra: Any) -> Any:
        with told_in_one_line():
            check_text(args)
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        with told_in_one_line():
            return super().invoke(ctx)


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
    fill_gaps()
    code: Any = 0
    try:
        app(prog_name="trackside")
    except KeyboardInterrupt:  # before the first command had begun
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code
    sys.exit(flush_stdout(code))
