"""What a soak prints of its report."""

from __future__ import annotations

import itertools
from typing import Any

from rich.console import Console
from rich.table import Table


def show(report: dict[str, Any], console: Console) -> None:
    console.print(table(report))
    console.print(recovery_table(report))
    console.print(f"Nothing was seen by which these could be judged: {'; '.join(report['not_judged'])}", markup=False)
    for violation in report["violations"]:
        console.print(violation, style="red", markup=False)


def table(report: dict[str, Any]) -> Table:
    found = Table(title=f"Soak of {report['took_s']:.0f} s, seed {report['seed']}", title_justify="left")
    found.add_column("what")
    found.add_column("figure")
    rows = itertools.chain(
        [("effective step time, share of undisturbed", f"{report['share']:.1%}")],
        [("undisturbed step", f"{report['step_s'] * 1000:.1f} ms")],
        ((name.replace("_", " "), _shown(report[name])) for name in (
            "faults", "faults_by_kind", "jobs_by_state", "attempts", "attempts_by_reason", "steps_done_again",
            "steps_lost", "doubled", "faults_missed", "looks", "looks_with_two_supervisors", "rq_info_listings",
            "rq_info_tracebacks",
        )),
        [("promises broken", str(len(report["violations"])))],
    )  # fmt: skip
    for name, value in rows:
        found.add_row(name, value)
    return found


def recovery_table(report: dict[str, Any]) -> Table:
    found = Table(title="From the fault, where its attempt ended: p50 / p95", title_justify="left")
    for heading in ("fault", "count", "noticed", "stepping again"):
        found.add_column(heading)
    for name, times in report["recoveries_by_kind"].items():
        spans = (f"{times[part]['p50']:.2f} / {times[part]['p95']:.2f} s" for part in ("noticed_s", "stepping_s"))
        found.add_row(name, str(times["count"]), *spans)
    return found


def _shown(value: Any) -> str:
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)
