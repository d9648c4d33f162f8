"""`metrics`: what a job logged, each step once."""

from __future__ import annotations

import csv
import math
import sys
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from trackside.cli.context import find_job, store_of
from trackside.cli.options import OneJob
from trackside.cli.render import Column, number, print_json, print_table, say
from trackside.errors import InvalidJob

if TYPE_CHECKING:
    from trackside.series import Columns


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(metrics)


def metrics(
    ctx: typer.Context,
    job: OneJob,
    name: Annotated[str, typer.Option(metavar="GLOB", help="Only series of this name; * and ? stand for any.")] = "*",
    as_csv: Annotated[bool, typer.Option("--csv", help="Every point as name,step,value,attempt.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every point as one JSON document.")] = False,
) -> None:
    """Show the metrics of a job.

    The last value of each series, its least and its greatest.

    Where steps were redone after a resume, the newest attempt's value counts.

    --json: {"job", "total_steps", "series": {name: [[step, value, attempt], ...]}}; a value that JSON has no number
    for is "NaN", "Infinity" or "-Infinity".
    """
    from trackside.bus import streams
    from trackside.codec import number_or_name
    from trackside.series import Series

    if as_csv and as_json:
        raise InvalidJob("--csv and --json are two formats: give one")
    store = store_of(ctx)
    found = find_job(store, job)
    series = Series()
    for _, attempt, batch in streams.batches(store.client, found.id):
        series.add(attempt, batch)
    chosen = {title: columns for title, columns in sorted(series.columns.items()) if fnmatchcase(title, name)}
    if as_json:
        points = {
            title: [(step, number_or_name(value), attempt) for step, value, attempt in columns]
            for title, columns in chosen.items()
        }
        print_json({"job": found.id, "total_steps": series.total, "series": points})
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["name", "step", "value", "attempt"])
        for title, columns in chosen.items():
            writer.writerows((title, step, repr(value), attempt) for step, value, attempt in columns)
    elif chosen:
        numbers = ("LAST", "STEP", "MIN", "MAX", "POINTS")
        columns_ = [Column(title="NAME"), *(Column(title=title, justify="right") for title in numbers)]
        print_table(columns_, [_row(title, columns) for title, columns in chosen.items()])
    else:
        say(f"job {found.id!r} has logged no metrics" + ("" if name == "*" else f" that fit {name!r}"))


def _row(title: str, columns: Columns) -> tuple[object, ...]:
    finite = [value for value in columns.values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (None, None)
    last = columns.values[-1] if len(columns) else None
    step = columns.steps[-1] if len(columns) else None
    return title, number(last), step, number(low), number(high), len(columns)
