"""`ls`, `ps`, `slots`, `cordon`, `uncordon`: what is on the bus, for people and with `--json` for programs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trackside.cli.context import newest_attempts, store_of
from trackside.cli.observe import by_job, job_row, places, process_rows, slot_rows, unfit
from trackside.cli.options import choice, count
from trackside.cli.render import Column, age, narrow, number, print_json, print_table, progress, say, span
from trackside.errors import BusUnavailable
from trackside.ids import stem
from trackside.wording import counted

if TYPE_CHECKING:
    from trackside.models import Job
    from trackside.store import Store

_RECENT: Final = 20
_LED_BY_AN_END: Final = frozenset({"queued", "waiting", "failed"})  # to the others, a person or a new attempt
_PAGE: Final = 500
Slot = Annotated[str, typer.Argument(metavar="SLOT", help="A slot's id, as `slots` lists them.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]


class State(StrEnum):
    """The states of a job, as `--state` takes them."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("ls")(ls)
    app.command()(ps)
    app.command()(slots)
    app.command()(cordon)
    app.command()(uncordon)


def ls(
    ctx: typer.Context,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Every job, however old.")] = False,
    state: Annotated[
        State | None,
        choice("--state", State, "Only jobs in this state.", metavar="STATE"),
    ] = None,
    limit: Annotated[int | None, count("--limit", "At most this many.", least=1)] = None,
    as_json: Json = False,
) -> None:
    """List jobs: those not yet ended, and the newest 20.

    --json: {"now_ms", "jobs": [{"id", "name", "state", "step", "total_steps", "steps_per_s", "last_step_s", "attempt",
    "slot", "reason", "detail", "place", "unfit", "created_at_ms", "changed_at_ms", "ended_at_ms", "retry_at_ms",
    "checkpoint_step"}]}; last_step_s is how long ago the newest step was done, place the job's in line for a slot,
    unfit says that no slot is of the kind it waits for.
    """
    from trackside.bus import beats
    from trackside.bus.client import now_ms
    from trackside.line import unled

    store = store_of(ctx)
    now = now_ms(store.client)
    jobs, more = _select(store, show_all=show_all, state=state, limit=limit)
    heard = beats.read(store.client)
    workers, attempts = by_job(heard), newest_attempts(store, jobs)
    line_, unfit_ = places(store, jobs), unfit(store, jobs)
    rows = [
        job_row(job, workers.get(job.id), attempts.get(job.id), now, line_.get(job.id), unfit_.get(job.id))
        for job in jobs
    ]
    if as_json:
        print_json({"now_ms": now, "jobs": rows})
        return
    if not rows:
        say("no such jobs; `trackside submit train.py` puts one on the bus" if state is None else f"no {state} jobs")
        return
    _draw(rows, now, named=not narrow() or not all(map(_named_by_id, rows)))
    nobody = unled(heard)
    if nobody is not None and any(row["state"] in ("queued", "waiting") for row in rows):
        say(nobody)
    if more:
        say(f"{counted(more, 'older job')}: trackside ls --all")


def _draw(rows: list[dict[str, Any]], now: int, *, named: bool) -> None:
    """The table of jobs; `named`: with their names."""
    columns = [
        Column(title="ID"), *([Column(title="NAME")] if named else []), Column(title="STATE"),
        Column(title="STEP", justify="right"), Column(title="ATT", justify="right"), Column(title="SLOT"),
        Column(title="AGE", justify="right"), Column(title="WHY", note=True),
    ]  # fmt: skip
    print_table(
        columns,
        [
            (
                row["id"], *([row["name"]] if named else []), row["state"],
                progress(row["step"], row["total_steps"]), row["attempt"] or None, row["slot"],
                age(row["created_at_ms"], now), why(row, now),
            )
            for row in rows
        ],
    )  # fmt: skip


def why(row: dict[str, Any], now: int) -> str | None:
    """Why a job is where it is: why its last attempt ended where that led there, the detail, the next try."""
    from trackside import line

    parts = []
    if row["reason"] and row["state"] in _LED_BY_AN_END and row["reason"] not in (row["state"], "paused"):
        parts.append(row["reason"])
    if row["detail"]:
        place = f", {line.words(row['place'])}" if row["place"] else ""
        parts.append(row["detail"] + (f": {row['unfit']}" if row["unfit"] else place))
    if row["retry_at_ms"] is not None and row["state"] == "waiting":
        parts.append(f"next try in {span(max(0, row['retry_at_ms'] - now) / 1000)}")
    return ": ".join(parts) or None


def _named_by_id(row: dict[str, Any]) -> bool:
    return str(row["id"]).startswith(stem(row["name"]) + "-")


def _select(store: Store, *, show_all: bool, state: State | None, limit: int | None) -> tuple[list[Job], int]:
    """The jobs to list, newest first, and how many older ones were left out."""
    ids = store.job_ids()
    if state is None and not show_all:
        live = set(store.live_job_ids())
        newest = ids[: _RECENT if limit is None else limit]
        wanted = newest if limit is not None else [i for n, i in enumerate(ids) if n < _RECENT or i in live]
        return store.jobs(wanted), len(ids) - len(wanted)
    if state is not None and state not in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        live = set(store.live_job_ids())
        ids = [job_id for job_id in ids if job_id in live]
    found: list[Job] = []
    for start in range(0, len(ids), _PAGE):
        page = store.jobs(ids[start : start + _PAGE])
        found += [job for job in page if state is None or job.state.value == state.value]
        if limit is not None and len(found) >= limit:
            return found[:limit], 0
    return found, 0


def ps(ctx: typer.Context, as_json: Json = False) -> None:
    """List every process of the system, silent ones too.

    A narrow terminal gets neither hosts, CPU nor memory.

    --json: {"now_ms", "processes": [{"role", "name", "pid", "host", "slot", "job", "attempt", "attempt_pid", "status",
    "age_s", "silent_s", "step", "total_steps", "steps_per_s", "last_step_s", "cpu_pct", "rss_mib"}]}; status is ok,
    stopping or silent. Three clocks: the process by its pid, its beat by age_s, its training by last_step_s. silent_s
    is since when a silent one's beat is overdue.
    """
    store = store_of(ctx)
    now, rows = process_rows(store)
    if as_json:
        print_json({"now_ms": now, "processes": rows})
        return
    if (refused := _refused_writes(store)) is not None:
        say(f"warning: {refused}")  # who beats in vain looks silent
    if not rows:
        say("no process has been seen; `trackside up` starts them")
        return
    hosts = not narrow() or len({row["host"] for row in rows if row["host"] is not None}) > 1
    columns = [
        Column(title="ROLE"), Column(title="PID", justify="right"), *([Column(title="HOST")] if hosts else []),
        Column(title="SLOT"), Column(title="JOB"), Column(title="ATT", justify="right"), Column(title="STATUS"),
        Column(title="BEAT", justify="right"), Column(title="STEP", justify="right"),
        Column(title="LAST STEP", justify="right"),
        *([] if narrow() else [Column(title="CPU%", justify="right"), Column(title="RSS MiB", justify="right")]),
    ]  # fmt: skip
    print_table(
        columns,
        [
            (
                row["role"], row["pid"], *([row["host"]] if hosts else []), row["slot"],
                row["job"], row["attempt"], _status(row), span(row["age_s"]),
                progress(row["step"], row["total_steps"]), span(row["last_step_s"]),
                *([] if narrow() else [number(row["cpu_pct"]), _whole(row["rss_mib"])]),
            )
            for row in rows
        ],
    )  # fmt: skip


def _status(row: dict[str, Any]) -> str:
    return row["status"] if row["silent_s"] is None else f"silent for {span(row['silent_s'])}"


def _refused_writes(store: Store) -> str | None:
    from trackside.bus.client import check_writes

    try:
        check_writes(store.client)
    except BusUnavailable as error:
        return error.message
    return None


def slots(ctx: typer.Context, as_json: Json = False) -> None:
    """List the slots: one a GPU or CPU share.

    --json: {"now_ms", "slots": [{"id", "host", "kind", "state", "threads", "gpu_name", "gpu_uuid", "gpu_memory_mib",
    "job", "attempt", "step", "total_steps", "steps_per_s", "last_step_s", "cordoned", "cordon_reason", "blocked",
    "throttled", "breaker", "breaker_failed", "breaker_until_ms"}]}; state is free, busy, silent, cordoned, resting or
    blocked; "blocked" says why it takes no job, "throttled" why it is slow; breaker is closed, open or probing.
    """
    store = store_of(ctx)
    now, rows = slot_rows(store)
    if as_json:
        print_json({"now_ms": now, "slots": rows})
        return
    if not rows:
        say("no slots; `trackside trainer` or `trackside up` offers this machine's")
        return
    columns = [
        Column(title="SLOT"), Column(title="HOST"), Column(title="STATE"), Column(title="DEVICE"), Column(title="JOB"),
        Column(title="ATT", justify="right"), Column(title="STEP", justify="right"), Column(title="WHY", note=True),
    ]  # fmt: skip
    print_table(
        columns,
        [
            (row["id"], row["host"], row["state"], _device(row), row["job"], row["attempt"],
             progress(row["step"], row["total_steps"]), _why_closed(row, now))
            for row in rows
        ],
    )  # fmt: skip


def cordon(ctx: typer.Context, slot: Slot) -> None:
    """Give a slot no more work; what runs on it is not touched. Asking again does no harm."""
    store_of(ctx).cordon(slot, cordoned=True)
    say(f"{slot} takes no more work; `trackside uncordon {slot}` puts it back")


def uncordon(ctx: typer.Context, slot: Slot) -> None:
    """Put a slot back into service, also one that rests after failures."""
    store_of(ctx).cordon(slot, cordoned=False)
    say(f"{slot} takes work")


def _why_closed(row: dict[str, Any], now: int) -> str | None:
    """Why a slot takes no work, is about to stop, or is slow."""
    parts = [row["cordon_reason"]] if row["cordon_reason"] else []
    parts += ["cordoned: `trackside uncordon` puts it back"] if row["cordoned"] else []
    parts += [row["blocked"]] if row["blocked"] else []
    failed = len(row["breaker_failed"])
    if row["breaker"] == "open":
        rest = span(max(0, (row["breaker_until_ms"] or now) - now) / 1000)
        parts.append(f"{failed} different jobs crashed on it; self-test in {rest}")
    elif row["breaker"] == "probing":
        parts.append(f"{failed} different jobs crashed on it; its self-test runs")
    if row["throttled"]:
        parts.append(f"slow: {row['throttled']}")
    return "; ".join(parts) or None


def _device(row: dict[str, Any]) -> str:
    if row["kind"] == "gpu":
        memory = f", {row['gpu_memory_mib']} MiB" if row["gpu_memory_mib"] is not None else ""
        return f"{row['gpu_name'] or 'GPU'}{memory}"
    return f"CPU, {row['threads']} threads"


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
