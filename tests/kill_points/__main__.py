"""Kills trainings at chance moments and compares their ends with undisturbed ones; prints a table, writes JSON.

`make kill-points` runs it with fifty kills for each model and each number of loader workers. Exits 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from kill_points import driver
from kill_points.driver import Job, Result, Tally
from trackside.processes import become_subreaper
from trackside.sdk import torch_state
from trackside_trainer.preload import preload

WORKERS: Final = ("0", "2", "0/2")


def undisturbed(root: Path, model: str) -> Result:
    """The end of a job that nobody touched, with and without loader workers."""
    results = [Job(root / f"{model}-whole-{n}", model).finish("--workers", str(n)) for n in (0, 2)]
    if results[0].hashes != results[1].hashes:
        raise driver.Unequal(f"{model}: the number of loader workers changes it: {results[0].difference(results[1])}")
    return results[0]


def controls(root: Path, model: str, whole: Result) -> dict[str, bool]:
    """Resume with one part of the state left out each time; whether that shows. "" leaves nothing out."""
    base = Job(root / f"{model}-base", model)
    driver.stop_in_order(base, driver.STEPS // 2)
    shown = {}
    for part in ("", *held(base)):
        copy = root / f"{model}-without-{part}"
        shutil.copytree(base.root, copy)
        result = Job(copy, model).finish("--leave-out", part)
        shown[part] = result.hashes != whole.hashes
        if not part and result.hashes != whole.hashes:
            raise driver.Unequal(f"{model}: stopped in order it ends differently: {result.difference(whole)}")
    return shown


def held(job: Job) -> list[str]:
    """Every part of the state that the job's newest checkpoint holds."""
    newest = max((job.root / "checkpoints").glob("step-*"))
    parts = sorted(path.stem for path in newest.glob("[!_]*.pt"))
    generators = sorted(torch_state.load(newest / "_rng.pt"))
    hidden = {path.name for path in newest.glob("_*")}
    assert hidden == {"_rng.pt", "_extra.pt"}, f"a checkpoint holds {hidden}: leave each out in a control"
    return [*parts, "extra", "position", *(f"rng.{name}" for name in generators)]


def run(root: Path, kills: int, seed: int) -> dict[str, Any]:
    """All trials; the figures as JSON has them."""
    rows, shown = [], {}
    for model in driver.MODELS:
        whole = undisturbed(root, model)
        shown[model] = controls(root, model, whole)
        for workers in WORKERS:
            began_s = time.monotonic()
            tally = driver.try_kills(root, model, workers, kills, seed, whole)
            rows.append(row(model, workers, tally, time.monotonic() - began_s))
        for path in root.glob(f"{model}-*"):
            if not any(name in path.name for row_ in rows for name in row_["unequal"]):
                shutil.rmtree(path)
    parts = sorted({part for found in shown.values() for part in found if part})
    return {
        "seed": seed,
        "rows": rows,
        "controls": {part: [model for model in shown if shown[model].get(part)] for part in parts},
    }


def row(model: str, workers: str, tally: Tally, took_s: float) -> dict[str, Any]:
    return {
        "model": model,
        "workers": workers,
        "kills": tally.kills,
        "equal": tally.equal_kills,
        "jobs": tally.jobs,
        "starting": tally.starting,
        "saving": tally.saving,
        "redone": sum(tally.redone),
        "redone_most": max(tally.redone, default=0),
        "took_s": round(took_s, 1),
        "unequal": tally.unequal,
    }


def show(report: dict[str, Any]) -> None:
    names = ("model", "workers", "kills", "equal", "jobs", "starting", "saving", "redone", "redone_most", "took_s")
    table = Table("model", "loader\nworkers", "kill\npoints", "hashes\nequal", "jobs", "killed in\nstart-up")
    for name in ("killed in\na save", "steps\nredone", "most\nat once", "seconds"):
        table.add_column(name)
    for found in report["rows"]:
        table.add_row(*(str(found[name]) for name in names))
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    for part, models in report["controls"].items():
        console.print(f"left out: {part:14} differs: {', '.join(models) or 'NEVER'}")
    for found in report["rows"]:
        for text in found["unequal"]:
            console.print(f"UNEQUAL {text}", style="red")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=int(os.environ.get("TRACKSIDE_KILL_POINTS", "50")))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="folder to work in, which is kept")
    args = parser.parse_args()
    preload()
    import sklearn.datasets  # noqa: F401 -- for the forks; only now, as numpy starts its threads at import

    become_subreaper()
    print(f"seed {args.seed}, {args.points} kill points each", flush=True)
    root = args.keep or Path(tempfile.mkdtemp(prefix="ts-"))
    try:
        report = run(root.absolute(), args.points, args.seed)
    except driver.Unequal as error:
        print(f"UNEQUAL {error}; its files are in {root}")
        return 1
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    right = all(found["equal"] == found["kills"] for found in report["rows"]) and all(report["controls"].values())
    if right and not args.keep:
        shutil.rmtree(root)
    if not right:
        print(f"its files are in {root}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
