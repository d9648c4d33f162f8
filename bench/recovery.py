"""How long a fault is noticed after, how long until training steps again, and what it costs: a table.

On a whole system (`trackside up`, one CPU slot) with a training that steps every 10 ms and saves every 20 steps. A
silent host is agent, worker and training process stopped at once, with a second host beside it; a hang is a script
that stops stepping, its time counted from its last step, the limit 2 s. Times are differences of the server's clock
and of the steps' own times on the same machine. A service has been noticed when its successor's process begins, and
serves again at that one's first beat. Run it with `make bench`, or:
PYTHONPATH=tests python bench/recovery.py --trials 30 --json recovery.json

Without --against it judges nothing; with it, it exits 1 if a median got more than a fifth, and 50 ms, worse than in
that earlier table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from system import TRAIN, System, another_host, host_pids, running_system, send
from trackside import processes
from trackside.bus import beats, streams
from trackside.bus.client import now_ms
from trackside.clock import since_boot_s
from trackside.models import Beat, EventKind, Role
from trackside.testing import wait_until


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one kill cost. Times in s after the kill; None where it does not apply."""

    noticed_s: float | None
    serving_s: float | None
    stepping_s: float
    redone: int
    doubled: int


def point_times(system: System, job_id: str) -> list[tuple[int, int, int]]:
    """(at_ms, attempt, step) of every point on the bus, in order."""
    return [
        (at_ms, number, step)
        for _, number, batch in streams.batches(system.client, job_id)
        for step, at_ms in zip(batch.steps, batch.at_ms, strict=True)
    ]


def after_kill(
    system: System, job_id: str, killed_ms: int, noticed_s: float | None = None, serving_s: float | None = None
) -> Trial:
    """Wait for the job's end and read off what the kill cost."""
    job = system.ended(job_id, 120.0)
    assert job.state == "succeeded", job
    points = point_times(system, job_id)
    ended = [event for event in system.events(job_id) if event.kind is EventKind.ENDED and event.at_ms >= killed_ms]
    if job.attempt > 1:
        noticed_s = (ended[0].at_ms - killed_ms) / 1000 if noticed_s is None else noticed_s
        stepping_ms = min(at_ms for at_ms, number, _ in points if number == job.attempt)
        last = max(step for _, number, step in points if number < job.attempt)
        first = min(step for _, number, step in points if number == job.attempt)
        redone = last - first + 1
    else:
        stepping_ms, redone = next(at_ms for at_ms, _, _ in points if at_ms >= killed_ms), 0
    seen = [(number, step) for _, number, step in points]
    starts = sum(event.kind is EventKind.STARTED for event in system.events(job_id))
    doubled = len(seen) - len(set(seen)) + starts - job.attempt
    return Trial(
        noticed_s=noticed_s, serving_s=serving_s, stepping_s=(stepping_ms - killed_ms) / 1000, redone=redone,
        doubled=doubled,
    )  # fmt: skip


def kill_training(system: System, job_id: str) -> Trial:
    beat = system.stepping(job_id, 70)
    assert beat.attempt_pid is not None
    return after_kill(system, job_id, system.kill(beat.attempt_pid))


def kill_worker(system: System, job_id: str) -> Trial:
    return after_kill(system, job_id, system.kill(system.stepping(job_id, 70).pid))


def kill_service(role: Role) -> Callable[[System, str], Trial]:
    def kill(system: System, job_id: str) -> Trial:
        system.stepping(job_id, 70)

        def serving() -> list[Beat]:
            """The newest first: the beat of one that was killed before stays for its time to live."""
            found = [beat for beat in _beats(system) if beat.role is role and beat.leader is not False]
            return sorted(found, key=lambda beat: beat.started_at_ms, reverse=True)

        beat = serving()[0]
        killed_ms = system.kill(beat.pid)

        def successor() -> list[Beat]:
            return [other for other in serving() if other.started_at_ms > beat.started_at_ms]

        came = wait_until(successor, 60.0, f"no new {role}")[0]
        noticed_s, serving_s = (began_ms(came.pid) - killed_ms) / 1000, (came.at_ms - killed_ms) / 1000
        return after_kill(system, job_id, killed_ms, noticed_s, serving_s)

    return kill


def silence_host(system: System, job_id: str) -> Trial:
    """Freeze agent, worker and training process at once; the other host must take over. They come back afterwards."""
    beat = system.stepping(job_id, 70)
    frozen = host_pids(system, beat.host)
    killed_ms = now_ms(system.client)
    send(frozen, signal.SIGSTOP)
    try:
        wait_until(lambda: system.job(job_id).attempt > 1, 30.0, "the job was not moved")
    finally:
        send(frozen, signal.SIGCONT)
    trial = after_kill(system, job_id, killed_ms)
    wait_until(lambda: not set(frozen) & {b.attempt_pid for b in _beats(system)}, 30.0, "the zombie goes on")
    return trial


def hang(system: System, job_id: str) -> Trial:
    """The script stops stepping at step 70 of its first attempt."""
    wait_until(lambda: system.job(job_id).attempt > 1, 60.0, "the hang was not noticed")
    stopped_ms = max(at_ms for at_ms, number, _ in point_times(system, job_id) if number == 1)
    told = [event for event in system.events(job_id) if str(event.data.get("text", "")).startswith("stalled: ")]
    return after_kill(system, job_id, stopped_ms, (told[0].at_ms - stopped_ms) / 1000)


def began_ms(pid: int) -> float:
    """When a process began, by this machine's clock, to a hundredth of a second."""
    ticks = processes.start_time(pid)
    assert ticks is not None, f"process {pid} is gone"
    return time.time() * 1000 - (since_boot_s() - ticks / os.sysconf("SC_CLK_TCK")) * 1000


def _beats(system: System) -> list[Beat]:
    return [beat for beat in beats.read(system.client).values() if beat is not None]


KILLS: dict[str, Callable[[System, str], Trial]] = {
    "training process": kill_training,
    "worker": kill_worker,
    "agent": kill_service(Role.AGENT),
    "supervisor": kill_service(Role.SUPERVISOR),
    "silent host": silence_host,
    "hang": hang,
}
HANGS = """
if run.attempt == 1 and step == 70:
        time.sleep(3600)
    """
STALL_LIMIT_S = 2.0
HEADER = "fault              trials  noticed p50 p95   serving p50 p95  stepping p50 p95    redone  doubled"


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def row(name: str, trials: list[Trial]) -> dict[str, object]:
    times = {
        "noticed": [trial.noticed_s for trial in trials if trial.noticed_s is not None],
        "serving": [trial.serving_s for trial in trials if trial.serving_s is not None],
        "stepping": [trial.stepping_s for trial in trials],
    }
    figures = {
        f"{what}_p{share:.0f}_s": round(percentile(found, share / 100), 3) if found else None
        for what, found in times.items()
        for share in (50, 95)
    }
    redone, doubled = max(trial.redone for trial in trials), sum(trial.doubled for trial in trials)
    return {"fault": name, "trials": len(trials), **figures, "redone_most": redone, "doubled": doubled}


def worse(rows: list[dict[str, object]], earlier: list[dict[str, object]]) -> list[str]:
    """The medians that are more than a fifth, and more than 50 ms, above those of an earlier table."""
    before = {row["fault"]: row for row in earlier}
    found = []
    for row in rows:
        for name in (name for name in row if name.endswith("_p50_s")):
            now_s, then_s = row[name], before.get(row["fault"], {}).get(name)
            if isinstance(now_s, float) and isinstance(then_s, float) and now_s > max(1.2 * then_s, then_s + 0.05):
                found.append(f"{row['fault']}: {name} {then_s:.3f} -> {now_s:.3f}")
    return found


def line(row: dict[str, object]) -> str:
    """A row of the table, under HEADER."""
    cells = [f"{row['fault']:<17}", f"{row['trials']:>6}"]
    for name in ("noticed", "serving", "stepping"):
        found = [row[f"{name}_p{share}_s"] for share in (50, 95)]
        cells.append("".join(f"{'-' if value is None else format(value, '.3f'):>9}" for value in found))
    return "".join([*cells, f"{row['redone_most']:>9}{row['doubled']:>9}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--only", choices=sorted(KILLS), action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--against", type=Path, help="an earlier --json: exit 1 if a median got worse by a fifth")
    args = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    script, hanging = home / "project" / "train.py", home / "hanging" / "train.py"
    for path, text in (
        (script, TRAIN),
        (hanging, TRAIN.replace("x = torch.randn", HANGS.strip() + "\n    x = torch.randn")),
    ):
        path.parent.mkdir()
        path.write_text(text)
    settings = {"host": "alpha", "data": str(home / "data"), "stall_limit_s": str(STALL_LIMIT_S)}
    # What is killed in each trial is none that keeps dying, or it would be started later and later.
    settings |= {"restart_intensity": "1000", "restart_period_s": "1"}
    rows: list[dict[str, object]] = []
    print(HEADER)
    with running_system(home / "home", "--slots", "cpu:1", "--no-dashboard", **settings) as system:
        for name in args.only or KILLS:
            # A new agent takes some seconds to import torch, so the run must outlast it.
            options = ("--steps", "700" if name == "agent" else "250")
            program = hanging if name == "hang" else script
            with another_host(system, home / "beta", "beta") if name == "silent host" else nullcontext():
                found = [KILLS[name](system, system.submit(program, args=options)) for _ in range(args.trials)]
            rows.append(made := row(name, found))
            print(line(made), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
    shutil.rmtree(home, ignore_errors=True)
    regressions = worse(rows, json.loads(args.against.read_text())) if args.against else []
    print("\n".join(regressions))
    sys.exit(1 if regressions else 0)


if __name__ == "__main__":
    main()
