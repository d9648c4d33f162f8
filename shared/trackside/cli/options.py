"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from trackside.cli.parse import one_of, whole

Jobs = Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids, unique beginnings of ids, or names.")]
OneJob = Annotated[str, typer.Argument(metavar="JOB", help="Id, unique beginning of an id, or name.")]


def choice(name: str, words: type[StrEnum], says: str, *, metavar: str | None = None) -> Any:
    """An option that takes one of these words; the help lists them unless `metavar` stands for them."""
    return typer.Option(metavar=metavar or "|".join(words), parser=one_of(name, words), help=says)


def count(name: str, says: str, *, least: int | None = None) -> Any:
    """An option that takes a whole number, not below `least`."""
    return typer.Option(metavar="N", parser=whole(name, least), help=says)
