"""`top`: the system at a glance, as it goes on."""

from __future__ import annotations

import select
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trackside.cli.context import store_of
from trackside.cli.observe import slot_rows
from trackside.cli.output import event_line
from trackside.cli.render import Column, age, console, number, plain, progress, span, table, when
from trackside.cli.show import last_metrics
from trackside.errors import BusUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trackside.models import Event, Job
    from trackside.store import Store

_EVERY_S: Final = 0.5
_EVENTS: Final = 8
_WAITING: Final = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one look at the bus gave."""

    now_ms: int  # the server's time, by which all ages are counted
    live: tuple[Job, ...]
    ended: int
    slots: tuple[dict[str, Any], ...]  # rows of `slots --json`, and "loss"
    events: tuple[Event, ...]


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(top)


def top(
    ctx: typer.Context, once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False
) -> None:
    """Watch slots, jobs and events live; q or Ctrl-C ends it."""
    store = store_of(ctx)
    view = look(store)
    if once or not sys.stdout.isatty():
        console().print(frame(view, stale_s=None), crop=False)
        return
    from rich.live import Live

    from trackside.cli.stops import taken

    seen_s = time.monotonic()
    with (
        taken() as stops,
        _keys() as pressed,
        Live(frame(view, stale_s=None), console=console(), screen=True, auto_refresh=False) as live,
    ):
        stops.let_in()
        while not pressed("q", _EVERY_S):
            try:
                view, seen_s = look(store), time.monotonic()
                stale_s = None
            except BusUnavailable:
                stale_s = time.monotonic() - seen_s
            live.update(frame(view, stale_s=stale_s), refresh=True)
        stops.held = True  # the terminal is given back


def look(store: Store) -> View:
    """Read what one frame needs; raises BusUnavailable."""
    from trackside.bus import keys, streams

    live = store.jobs(store.live_job_ids())
    now, slots = slot_rows(store)
    rows = tuple({**row, "loss": _loss(store, row["job"])} for row in slots)
    ended = max(0, store.client.zcard(keys.JOBS) - len(live))
    newest = streams.newest_events(store.client, _EVENTS)
    events = tuple(event for _, event in newest if event is not None)
    return View(now_ms=now, live=tuple(live), ended=ended, slots=rows, events=events)


def _loss(store: Store, job_id: str | None) -> float | str | None:
    """The last value of the series that looks most like the loss."""
    if job_id is None:
        return None
    metrics = last_metrics(store, job_id)
    names = sorted(metrics, key=lambda name: (name != "loss", "loss" not in name, len(name), name))
    return metrics[names[0]]["value"] if names else None


def frame(view: View, *, stale_s: float | None) -> RenderableType:
    """One picture of a view; `stale_s` says for how long the server has not been reached."""
    from rich.console import Group
    from rich.text import Text

    counts = Counter(job.state.value for job in view.live)
    totals = "  ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no job is under way"
    parts: list[Any] = [
        Text(f"trackside  {totals}  {view.ended} ended  ({when(view.now_ms)} server time)", style="bold")
    ]
    if stale_s is not None:
        since = f"STALE: the server has not answered for {span(stale_s)}; all below is as it was then"
        parts.append(Text(since, style="bold red"))
    parts += [Text(""), _slot_table(view)]
    waiting = [job for job in view.live if job.slot is None]
    if waiting:
        parts += [Text(""), _waiting_table(waiting, {row["kind"] for row in view.slots}, view.now_ms)]
    parts.append(Text(""))
    parts += [Text(event_line(event, with_job=True), overflow="fold") for event in reversed(view.events)]
    return Group(*parts)


def _slot_table(view: View) -> RenderableType:
    columns = [
        Column(title="SLOT"), Column(title="STATE"), Column(title="JOB"), Column(title="STEP", justify="right"),
        Column(title="LAST STEP", justify="right"), Column(title="STEP/S", justify="right"),
        Column(title="ETA", justify="right"), Column(title="LOSS", justify="right"),
    ]  # fmt: skip
    states = {job.id: job.state.value for job in view.live}
    rows = [
        (
            row["id"], states.get(row["job"], row["state"]), row["job"], progress(row["step"], row["total_steps"]),
            span(row["last_step_s"]), number(row["steps_per_s"]),
            span(eta_s(row["step"], row["total_steps"], row["steps_per_s"])), number(row["loss"]),
        )
        for row in view.slots
    ]  # fmt: skip
    return table(columns, rows)


def _waiting_table(jobs: list[Job], kinds: set[str], now_ms: int) -> RenderableType:
    from trackside import line

    places = line.places(jobs)
    first = sorted(jobs, key=lambda job: (places.get(job.id, len(jobs) + 1), job.created_at_ms))
    columns = [Column(title="JOB"), Column(title="STATE"), Column(title="SINCE", justify="right"), Column(title="WHY")]
    rows: list[tuple[object, ...]] = [
        (job.id, job.state.value, age(job.changed_at_ms, now_ms), _waits(job, kinds, places.get(job.id)))
        for job in first[:_WAITING]
    ]
    if len(first) > _WAITING:
        rows.append((f"and {len(first) - _WAITING} more", "", "", ""))
    return table(columns, rows)


def _waits(job: Job, kinds: set[str], place: int | None) -> str:
    from trackside import line

    where = line.unfit(job, kinds) or (line.words(place) if place else None)
    return plain(", ".join(part for part in (job.detail, where) if part))


def eta_s(step: int | None, total: int | None, steps_per_s: float | None) -> float | None:
    """Seconds to the last step at this speed, None if anything of it is not known."""
    if step is None or total is None or not steps_per_s or steps_per_s <= 0:
        return None
    return max(0, total - step) / steps_per_s


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits up to some seconds and says whether a key was pressed; plain waiting without a keyboard."""
    if not sys.stdin.isatty():
        yield _no_keys
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(key: str, wait_s: float) -> bool:
        readable, _, _ = select.select([fd], [], [], wait_s)
        return bool(readable) and sys.stdin.read(1).lower() == key

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        with suppress(termios.error):  # it may be gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _no_keys(_key: str, wait_s: float) -> bool:
    time.sleep(wait_s)
    return False
