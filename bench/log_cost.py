"""What `run.log` costs the training loop, beside appending the same record to a deque.

    python bench/log_cost.py [--calls 20000] [--rounds 7]

Each row is the median over the rounds, with the lowest and highest. It measures and never judges.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trackside.sdk.journal import JournalWriter
from trackside.sdk.page import ControlPage
from trackside.sdk.run import Run


def make_run(root: Path) -> Run:
    """A run that writes to a real journal."""
    return Run(
        id="bench",
        attempt=1,
        name="bench",
        params={},
        files_dir=root / "files",
        checkpoints_dir=root / "checkpoints",
        sink=JournalWriter(root / "journal.jsonl"),
        page=ControlPage.in_memory(),
        resume=None,
    )


def us_per_call(call: Callable[[int], object], calls: int) -> float:
    """Microseconds a call takes, the loop's own cost included."""
    began = time.perf_counter_ns()
    for step in range(calls):
        call(step)
    return (time.perf_counter_ns() - began) / calls / 1000


def empty_steps(root: Path) -> Callable[[int], object]:
    """One boundary of a step loop that does nothing."""
    steps = make_run(root).steps()
    return lambda _: next(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trackside-bench-") as folder:
        root = Path(folder)
        run = make_run(root)
        kept: deque[dict[str, float]] = deque(maxlen=args.calls)
        tensor = torch.tensor(0.25)
        many: dict[str, Any] = {f"metric_{number}": number / 7 for number in range(20)}
        rows: dict[str, Callable[[int], object]] = {
            "deque.append, 2 numbers": lambda step: kept.append({"step": step, "loss": 0.25, "lr": 0.001}),
            "run.log, 2 numbers": lambda step: run.log(loss=0.25, lr=0.001),
            "run.log, 1 CPU tensor": lambda step: run.log(loss=tensor),
            "run.log, 20 numbers": lambda step: run.log(**many),
            "run.steps, one boundary": empty_steps(root),
        }
        if torch.cuda.is_available():
            on_gpu = torch.tensor(0.25, device="cuda")
            rows["run.log, 1 GPU tensor"] = lambda step: run.log(loss=on_gpu)
        print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, {sys.platform}")
        print(f"{args.calls} calls a round, {args.rounds} rounds; us/call\n")
        print(f"{'':26}{'median':>9}{'lowest':>9}{'highest':>9}")
        for name, call in rows.items():
            times = [us_per_call(call, args.calls) for _ in range(args.rounds)]
            print(f"{name:26}{statistics.median(times):9.2f}{min(times):9.2f}{max(times):9.2f}")
        print(f"\n{throughput(root, args.calls * 5)}")


def throughput(root: Path, records: int) -> str:
    """How fast a journal fills when nothing else is done."""
    path = root / "throughput.jsonl"
    writer = JournalWriter(path)
    began = time.perf_counter()
    for step in range(records):
        writer.metrics(step, {"loss": 0.25, "lr": 0.001}, 1_700_000_000_000)
    took_s = time.perf_counter() - began
    size_mib = path.stat().st_size / 2**20
    return f"journal: {records / took_s:,.0f} records/s, {size_mib / took_s:.1f} MiB/s"


if __name__ == "__main__":
    main()
