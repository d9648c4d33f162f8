"""What a server that is frozen, slow or cut off costs the training loop: step times side by side.

One job of real training steps (about 5 ms of arithmetic and one `run.log` each) on a whole system, whose every service
reaches the server through a proxy. The weather changes every few seconds, in turn, and the script itself notes how
long each step took. It measures and judges nothing. Run it with `make bench`, or:
PYTHONPATH=tests python bench/isolation.py --rounds 5 --seconds 6
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chaos.proxy import Proxy
from trackside.bus import streams
from trackside.cli.throwaway import QUICK, Throwaway, throwaway
from trackside.server import EmbeddedServer, choose_binary

SCRIPT: Final = """
import sys, time
import torch
import trackside

run = trackside.init()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
optimizer = torch.optim.AdamW(model.parameters())
times = open(sys.argv[1], "a", buffering=1 << 16)
for step in run.steps(1_000_000):
    began = time.perf_counter_ns()
    for _ in range(3):
        loss = model(torch.randn(128, 256)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    run.log(loss=loss)
    times.write(f"{time.time_ns()} {time.perf_counter_ns() - began}\\n")
"""
SETTLE_S: Final = 0.5  # left out after each change: the services notice and log


def weathers(proxy: Proxy, pid: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name -> how it begins and how it ends."""
    return {
        "well": (lambda: None, lambda: None),
        "frozen": (lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT)),
        "500 ms round trip": (lambda: proxy.change(delay_s=0.25), proxy.clear),
        "cut off": (lambda: proxy.change(swallow_requests=True, swallow_replies=True), proxy.clear),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    script, times = home / "project" / "train.py", home / "times"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    spans: dict[str, list[tuple[int, int]]] = {}
    with EmbeddedServer(home / "server", binary=choose_binary()) as server, Proxy(server.socket_path, 1) as proxy:
        settings = {
            **QUICK,
            "redis_url": f"redis://supervisor@127.0.0.1:{proxy.port}/0",
            "redis_password_file": str(home / "server" / "secrets" / "supervisor"),
        }
        with throwaway(home / "home", slots="cpu:1", settings=settings, url=server.url("supervisor")) as system:
            job_id = system.submit(script, str(times))
            system.stepping(job_id, 100)
            changes = weathers(proxy, server.pid or 0)
            for _ in range(args.rounds):
                for name, (begin, end) in changes.items():
                    begin()
                    began_ns = time.time_ns() + int(SETTLE_S * 1e9)
                    time.sleep(args.seconds)
                    spans.setdefault(name, []).append((began_ns, time.time_ns()))
                    end()
                    time.sleep(1.0)
            job = finish(system, job_id)
            arrived = sorted({step for _, _, batch in streams.batches(system.client, job_id) for step in batch.steps})
    table(times, spans)
    print(f"job: {job}; {len(arrived)} steps on the bus, none missing: {arrived == list(range(1, len(arrived) + 1))}")
    shutil.rmtree(home, ignore_errors=True)


def finish(system: Throwaway, job_id: str) -> str:
    """Stop the job in order; returns its state and how many attempts it took."""
    system.trackside("cancel", job_id)
    job = system.ended(job_id, 60.0)
    return f"{job.state} after {job.attempt} attempt(s)"


def table(times: Path, spans: dict[str, list[tuple[int, int]]]) -> None:
    points = [tuple(map(int, line.split())) for line in times.read_text().splitlines() if line.count(" ") == 1]
    print(f"{'server':<20}{'steps':>8}{'median ms':>11}{'p99 ms':>9}{'median to well':>16}")
    well = None
    for name, parts in spans.items():
        found = sorted(took for at, took in points if any(start <= at <= stop for start, stop in parts))
        median = statistics.median(found) / 1e6
        well = median if well is None else well
        p99 = found[int(0.99 * len(found))] / 1e6
        print(f"{name:<20}{len(found):>8}{median:>11.3f}{p99:>9.3f}{median / well - 1:>+15.1%}")


if __name__ == "__main__":
    main()
