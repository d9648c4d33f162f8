"""What a server that is frozen, slow, full or cut off costs the training loop: step times side by side.

One job of real training steps (about 5 ms of arithmetic and one `run.log` each) on a whole system, whose every service
reaches the server through a proxy. The weather changes every few seconds, and the script itself notes how long each
step took.
It measures and judges nothing. Run it with `make bench`, or:
PYTHONPATH=tests python bench/isolation.py --rounds 5 --seconds 6 --json build/isolation.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import redis

from chaos.away import USER, OpenServer
from chaos.proxy import Proxy
from trackside.bus import streams
from trackside.cli.throwaway import QUICK, Throwaway, throwaway
from trackside.server import choose_binary

SCRIPT: Final = """
import sys, time
import torch
import trackside

run = trackside.init()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
optimizer = torch.optim.AdamW(model.parameters())
times = open(sys.argv[1], "a", buffering=1)  # whole when it is cancelled
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
REDRAWS: Final = 2000
WELL: Final = "well"


def weathers(proxy: Proxy, server: OpenServer) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Name -> how it begins and how it ends."""
    pid = server.pid or 0
    admin = redis.Redis.from_url(server.url(USER))
    return {
        WELL: (lambda: None, lambda: None),
        "frozen": (lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT)),
        "500 ms round trip": (lambda: proxy.change(delay_s=0.25), proxy.clear),
        "full": (lambda: admin.config_set("maxmemory", "1mb"), lambda: admin.config_set("maxmemory", "0")),
        "cut off": (lambda: proxy.change(swallow_requests=True, swallow_replies=True), proxy.clear),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    script, times = home / "project" / "train.py", home / "times"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    spans: dict[str, list[tuple[int, int]]] = {}
    with (
        OpenServer(home / "server", binary=choose_binary(), extra_users={USER: ("~*", "&*", "+@all")}) as server,
        Proxy(server.socket_path, 1) as proxy,
    ):
        settings = {
            **QUICK,
            "redis_url": f"redis://supervisor@127.0.0.1:{proxy.port}/0",
            "redis_password_file": str(home / "server" / "secrets" / "supervisor"),
        }
        with throwaway(home / "home", slots="cpu:1", settings=settings, url=server.url("supervisor")) as system:
            job_id = system.submit(script, str(times))
            system.stepping(job_id, 100)
            changes = weathers(proxy, server)
            order = random.Random(1)
            for _ in range(args.rounds):
                for name, (begin, end) in order.sample(sorted(changes.items()), len(changes)):
                    begin()
                    began_ns = time.time_ns() + int(SETTLE_S * 1e9)
                    time.sleep(args.seconds)
                    spans.setdefault(name, []).append((began_ns, time.time_ns()))
                    end()
                    time.sleep(1.0)
            job = finish(system, job_id)
            arrived = sorted({step for _, _, batch in streams.batches(system.client, job_id) for step in batch.steps})
    found = measured(times, spans)
    table(found)
    whole = arrived == list(range(1, len(arrived) + 1))
    print(f"job: {job}; {len(arrived)} steps on the bus, none missing: {whole}")
    if args.json is not None:
        document = {"rounds": args.rounds, "seconds": args.seconds, "job": job, "weathers": found}
        args.json.write_text(json.dumps({**document, "steps": len(arrived), "none_missing": whole}, indent=2) + "\n")
    shutil.rmtree(home, ignore_errors=True)


def finish(system: Throwaway, job_id: str) -> str:
    """Stop the job in order; returns its state and how many attempts it took."""
    system.trackside("cancel", job_id)
    job = system.ended(job_id, 60.0)
    return f"{job.state} after {job.attempt} attempt(s)"


def measured(times: Path, spans: dict[str, list[tuple[int, int]]]) -> dict[str, dict[str, Any]]:
    """By weather: steps, median and p99, and the share of good weather's speed that was kept, with its interval."""
    points = [tuple(map(int, line.split())) for line in times.read_text().splitlines() if line.count(" ") == 1]
    rounds = {
        name: [sorted(took / 1e6 for at, took in points if start <= at <= stop) for start, stop in parts]
        for name, parts in spans.items()
    }
    rates = {
        name: [len(part) / (stop - start) for part, (start, stop) in zip(parts, spans[name], strict=True)]
        for name, parts in rounds.items()
    }
    found = {}
    for name, parts in sorted(rounds.items(), key=lambda each: each[0] != WELL):
        every = sorted(took for part in parts for took in part)
        shares = [here / good for good, here in zip(rates[WELL], rates[name], strict=True)]
        low, high = interval(shares)
        found[name] = {
            "steps": len(every), "median_ms": statistics.median(every), "p99_ms": every[int(0.99 * len(every))],
            "longest_ms": every[-1], "share": statistics.fmean(shares), "share_from": low, "share_to": high,
        }  # fmt: skip
    return found


def interval(shares: list[float]) -> tuple[float, float]:
    """Where the mean lies in 95 of 100 redraws of the rounds."""
    rng = random.Random(1)
    means = sorted(statistics.fmean(rng.choices(shares, k=len(shares))) for _ in range(REDRAWS))
    return means[int(0.025 * REDRAWS)], means[int(0.975 * REDRAWS) - 1]


def table(found: dict[str, dict[str, Any]]) -> None:
    print(
        f"{'server':<20}{'steps':>8}{'median ms':>11}{'p99 ms':>9}{'longest ms':>12}{'speed kept':>12}   95 % interval"
    )
    for name, each in found.items():
        numbers = f"{each['steps']:>8}{each['median_ms']:>11.3f}{each['p99_ms']:>9.3f}{each['longest_ms']:>12.1f}"
        print(f"{name:<20}{numbers}{each['share']:>12.1%}   {each['share_from']:.1%} to {each['share_to']:.1%}")


if __name__ == "__main__":
    main()
