"""Curves as Vega-Lite: which points are drawn, and the description of the picture. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types

from trackside_dashboard import text
from trackside_dashboard.lines import Line, canonical, kept, taken

POINTS_SHOWN: Final = 1_000  # of one line
HEIGHT_PX: Final = 190
Axis = Literal["step", "time"]


def points(line: Line, axis: Axis, limit: int = POINTS_SHOWN) -> pd.DataFrame:
    """What is drawn of a metric: x, value (missing where it was no number), what it was then, step and attempt.

    By step, each step shows its highest attempt; by time, everything that was written, one line an attempt.
    """
    shown = canonical(line) if axis == "step" else line
    if len(shown) > limit:
        x = shown.steps if axis == "step" else np.maximum.accumulate(shown.at_ms)
        half = limit // 2  # by x, a part of which fewer points are held keeps its width; by count, the rest its shape
        shown = taken(shown, np.union1d(kept(shown.values, half), kept(shown.values, half, x)))
    good = np.isfinite(shown.values)
    odd = [None if ok else text.number(float(value)) for ok, value in zip(good, shown.values, strict=True)]
    return pd.DataFrame(
        {
            "x": shown.steps if axis == "step" else pd.to_datetime(shown.at_ms, unit="ms", utc=True),
            "value": np.where(good, shown.values, np.nan),
            "odd": pd.Series(odd, dtype="object"),
            "step": shown.steps,
            "attempt": shown.attempts,
        }
    )


def arrow(line: Line, axis: Axis) -> Any:
    """`points` as an Arrow table, so that it is converted once and not for every viewer and second."""
    return pa.Table.from_pandas(points(line, axis), preserve_index=False)


def odd_count(line: Line) -> int:
    """How many values are no number, over all steps."""
    return int(np.count_nonzero(~np.isfinite(canonical(line).values)))


def curve(restarts: Iterable[Mapping[str, Any]], axis: Axis, *, log: bool = False) -> dict[str, Any]:
    """The picture of one metric over the columns of `points`; its data come beside it."""
    x: dict[str, Any] = {
        "field": "x",
        "type": "quantitative" if axis == "step" else "temporal",
        "axis": {"title": None, "grid": False, "tickCount": 5, "labelOverlap": True},
        "scale": {"zero": False, "nice": False},
    }
    marks = [{"x": r["step"] if axis == "step" else r["at_ms"], "label": str(r["label"])} for r in restarts]
    tooltip = [
        {"field": "step", "type": "quantitative", "title": "step", "format": ","},
        {"field": "value", "type": "quantitative", "title": "value", "format": ".6~g"},
        {"field": "attempt", "type": "quantitative", "title": "attempt"},
    ]
    y: dict[str, Any] = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": None, "tickCount": 4, "format": ".4~g"},
        "scale": {"zero": False, "type": "symlog" if log else "linear"},
    }
    line: dict[str, Any] = {
        "mark": {"type": "line", "strokeWidth": 1.6, "strokeJoin": "round", "invalid": "break-paths-show-domains"},
        "encoding": {"x": x, "y": y, "order": {"field": "x"}},
    }
    if axis == "time":
        line["encoding"]["detail"] = {"field": "attempt"}
    hover: dict[str, Any] = {
        "mark": {"type": "point", "filled": True, "size": 40, "invalid": "filter"},
        "params": [
            {"name": "near", "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}}
        ],
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": tooltip,
            "opacity": {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0},
        },
    }
    layers = [line, hover, _odd_layer(x)]
    if marks:
        layers = [*_restart_layers(marks, x), *layers]
    return {"layer": layers, "height": HEIGHT_PX, "padding": {"left": 4, "right": 8, "top": 6, "bottom": 2}}


def _odd_layer(x: dict[str, Any]) -> dict[str, Any]:
    """A mark on the ground line where a value was no number, which the line itself leaves as a gap."""
    return {
        "transform": [{"filter": "isValid(datum.odd)"}],
        "mark": {"type": "point", "shape": "triangle-up", "filled": True, "size": 70, "color": "#d1453b"},
        "encoding": {
            "x": x,
            "y": {"value": {"expr": "height - 6"}},
            "tooltip": [
                {"field": "step", "type": "quantitative", "title": "step", "format": ","},
                {"field": "odd", "type": "nominal", "title": "value"},
            ],
        },
    }


def _restart_layers(marks: list[dict[str, Any]], x: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {"data": {"values": marks}}
    tooltip = [{"field": "label", "type": "nominal", "title": "restart"}]
    rule = {"type": "rule", "strokeDash": [3, 3], "strokeWidth": 1, "color": "#9a7b2f"}
    label = {"type": "text", "align": "left", "dx": 3, "fontSize": 10, "color": "#9a7b2f", "clip": True}
    return [
        {**shared, "mark": rule, "encoding": {"x": x, "tooltip": tooltip}},
        {**shared, "mark": label, "encoding": {"x": x, "y": {"value": 5}, "text": {"field": "label"}}},
    ]


def metrics_csv(lines: Mapping[str, Line]) -> str:
    """All points kept of a job, one row each: metric, attempt, step, time, value."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["metric", "attempt", "step", "at_ms", "value"])
    for name, line in lines.items():
        cell = text.plain(name)
        if cell[:1] in "=+-@":  # a spreadsheet would run it as a formula
            cell = "'" + cell
        for step, at_ms, attempt, value in zip(line.steps, line.at_ms, line.attempts, line.values, strict=True):
            writer.writerow([cell, int(attempt), int(step), int(at_ms), repr(float(value))])
    return out.getvalue()
