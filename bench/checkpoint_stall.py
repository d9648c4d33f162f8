"""How long a checkpoint holds up the training loop: written in the loop, and written beside it.

    python bench/checkpoint_stall.py [--size-mib 25] [--saves 30] [--device cpu]

The state is a model and its AdamW moments, a third each. Between two saves the loop does real steps for about as long
as a save takes, so that the thread has its time and the steps feel it. "stall" is what a save adds to the loop at its
boundary, "step beside" is a step while the thread writes, beside one while it does not. It measures and never judges.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore

_WIDTH = 512


@dataclass(kw_only=True)
class Times:
    """Milliseconds, one entry each save or step."""

    stall_ms: list[float] = field(default_factory=list)
    told_ms: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    quiet_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    size_mib: float = 0.0


class Training:
    """A model whose training state has about the given size."""

    def __init__(self, size_mib: float, device: str) -> None:
        torch.manual_seed(0)
        layers = max(1, round(size_mib * 2**20 / 3 / 4 / (_WIDTH * _WIDTH + _WIDTH)))
        self.model = torch.nn.Sequential(*(torch.nn.Linear(_WIDTH, _WIDTH) for _ in range(layers))).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.device = device
        self.step()

    def step(self) -> float:
        """One step; its milliseconds."""
        began = time.perf_counter()
        self.model(torch.randn(16, _WIDTH, device=self.device)).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) * 1000


def measure(root: Path, training: Training, saves: int, *, background: bool) -> Times:
    """Save so often, with steps in between."""
    times = Times()

    def emit(record: Any) -> None:
        if record["k"] != "ck":
            raise SystemExit(f"a checkpoint failed: {record}")
        times.told_ms.append(record["stall_ms"])
        times.took_ms.append(record["took_ms"])
        times.size_mib = record["bytes"] / 2**20

    checkpointer = Checkpointer(
        CheckpointStore(root, 1), {"model": training.model, "optimizer": training.optimizer}, every=1, keep=2,
        resume=(), emit=emit, background=background,
    )  # fmt: skip
    checkpointer.save_step(1, wait=True)  # read back once, which the others are not
    times.told_ms.clear()
    times.took_ms.clear()
    for at in range(saves):
        began = time.perf_counter()
        checkpointer.save_step(at + 2)
        times.stall_ms.append((time.perf_counter() - began) * 1000)
        while len(times.took_ms) <= at:  # until the thread is done
            times.beside_ms.append(training.step())
        times.quiet_ms += [training.step() for _ in range(10)]
    checkpointer.settle()
    return times


def spread(values: list[float]) -> str:
    """Median, 95th percentile and highest."""
    if not values:
        return f"{'-':>9}{'-':>9}{'-':>9}"
    ordered = sorted(values)
    return f"{statistics.median(ordered):9.1f}{ordered[int(0.95 * (len(ordered) - 1))]:9.1f}{ordered[-1]:9.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mib", type=float, default=25.0)
    parser.add_argument("--saves", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    args = parser.parse_args()
    training = Training(args.size_mib, args.device)
    name = torch.cuda.get_device_name() if args.device != "cpu" else platform.machine()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {name}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory(prefix="trackside-bench-", dir=args.folder) as folder:
        rows = {
            "in the loop": measure(Path(folder) / "loop", training, args.saves, background=False),
            "beside it": measure(Path(folder) / "beside", training, args.saves, background=True),
        }
    size_mib = rows["beside it"].size_mib
    print(f"{args.saves} saves of {size_mib:.1f} MiB each; ms\n")
    print(f"{'':26}{'median':>9}{'p95':>9}{'highest':>9}")
    for title, times in rows.items():
        print(f"{'stall, written ' + title:26}{spread(times.stall_ms)}")
    for title, times in rows.items():
        print(f"{'on the disk, ' + title:26}{spread(times.took_ms)}")
    print(f"{'step, nothing written':26}{spread(rows['in the loop'].quiet_ms + rows['beside it'].quiet_ms)}")
    print(f"{'step beside a write':26}{spread(rows['beside it'].beside_ms)}")


if __name__ == "__main__":
    main()
