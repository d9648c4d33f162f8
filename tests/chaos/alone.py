"""Faults that are tested by themselves, not on the whole system of this folder: how their tests went in this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from chaos.faults import ELSEWHERE, FAKE_DEVICE


def results(stats: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """How the tests of those faults went that are made by themselves, where this run had them."""
    found = []
    for fault, (file, name) in sorted(ELSEWHERE.items()):
        reports = [
            report
            for outcome in ("passed", "failed", "error", "skipped")
            for report in stats.get(outcome, [])
            if report.nodeid.split("[")[0] == f"tests/{file}::{name}"
        ]
        if reports:
            verdict = "held" if all(report.passed for report in reports) else "broken or not run"
            took_s = round(sum(report.duration for report in reports), 1)
            device = "fake device" if fault in FAKE_DEVICE else ""
            found.append({
                "fault": fault, "test": name, "cases": len(reports), "took_s": took_s, "device": device,
                "verdict": verdict,
            })  # fmt: skip
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """The same for people."""
    made = Table(title="Faults tested by themselves", title_justify="left", box=None)
    for column in ("fault", "cases", "took s", "device", "verdict", "test"):
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(
            row["fault"], str(row["cases"]), str(row["took_s"]), row["device"], row["verdict"],
            row["test"].removeprefix("test_").replace("_", " "),
        )  # fmt: skip
    return made
