"""`show`: one job with everything that is known about it; `why` is its story."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from trackside.cli.context import find_job, store_of
from trackside.cli.observe import job_row, live_beats, place_of, unfit
from trackside.cli.options import OneJob
from trackside.cli.render import (
    Column,
    age,
    block,
    number,
    plain,
    print_json,
    print_table,
    progress,
    record,
    size,
    span,
    when,
)
from trackside.cli.why import why

if TYPE_CHECKING:
    from trackside.models import Attempt, Batch, Job
    from trackside.store import Store


_RECENT_BATCHES: Final = 300
_RESULT_CHARS: Final = 200  # a summary takes texts of any length


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(show)
    app.command()(why)


def show(
    ctx: typer.Context,
    job: OneJob,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show one job with all that is known about it.

    State and why, program, attempts, checkpoints, last metrics, the run's summary, the last failure.

    --json: {"now_ms", "job": record, "progress": row of `ls --json`, "attempts": [record], "metrics": {name: {"step",
    "value", "attempt"}}, "summary": {name: value}}.
    """
    from trackside.bus.client import now_ms

    store = store_of(ctx)
    found = find_job(store, job)
    attempts = store.attempts(found)
    beat = live_beats(store).get(found.id)
    now = now_ms(store.client)
    lacking = unfit(store, [found]).get(found.id)
    row = job_row(found, beat, attempts[-1] if attempts else None, now, place_of(store, found), lacking)
    metrics, summary = _recent(store, found.id)
    if as_json:
        print_json(
            {
                "now_ms": now,
                "job": record(found),
                "progress": row,
                "attempts": [record(attempt) for attempt in attempts],
                "metrics": metrics,
                "summary": summary,
            }
        )
        return
    _facts(found, attempts[-1] if attempts else None, row, now)
    for title, text in _told(store, found, now):
        print(f"{title + ':':<13}{plain(text)}")
    if attempts:
        print("\nAttempts")
        _attempts(attempts, now)
    if found.checkpoints:
        print("\nCheckpoints")
        print_table(
            [
                Column(title="NAME"), Column(title="STEP", justify="right"), Column(title="ATT", justify="right"),
                Column(title="SIZE", justify="right"), Column(title="AGE", justify="right"), Column(title="STORAGE"),
            ],
            [(c.name, c.step, c.attempt, size(c.bytes), age(c.at_ms, now), c.storage) for c in found.checkpoints],
        )  # fmt: skip
    if metrics:
        print("\nLast metrics")
        columns = [Column(title="NAME"), Column(title="VALUE", justify="right"), Column(title="STEP", justify="right")]
        print_table(columns, [(name, number(last["value"]), last["step"]) for name, last in sorted(metrics.items())])
    if summary:
        print("\nSummary")
        columns = [Column(title="NAME"), Column(title="VALUE", note=True)]
        print_table(columns, [(name, _result(value)) for name, value in sorted(summary.items())])
    for attempt in _bad_ends(attempts):
        _failure(attempt)


def _told(store: Store, job: Job, now: int) -> list[tuple[str, str]]:
    """What only the history tells: why the newest pause was refused, and what the running attempt was warned of last.

    The record says the former until its next change.
    """
    from trackside.bus import streams

    refused = warned = None
    for _, event in streams.history(store.client, job.id):
        if event.cause == "pause refused":
            refused = event
        elif event.cause in ("pause requested", "paused"):
            refused = None
        elif event.data.get("level") == "warning" and event.attempt == job.attempt:
            warned = event
    lines = []
    if refused is not None and refused.data.get("detail") not in (None, job.detail):
        lines.append(("No pause", f"refused {age(refused.at_ms, now)} ago: {refused.data['detail']}"))
    if warned is not None and job.slot is not None:
        lines.append(("Warning", f"{age(warned.at_ms, now)} ago: {warned.data.get('text')}"))
    return lines


def last_metrics(store: Store, job_id: str) -> dict[str, dict[str, Any]]:
    """The newest point of each series in the newest batch."""
    from trackside.bus import streams

    newest = streams.last_batch(store.client, job_id)
    return {} if newest is None else last_points(newest[1], newest[2])


def _recent(store: Store, job_id: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The newest point of each series in the newest batches, and the summary: some are logged once an epoch only."""
    from trackside.bus import keys, streams
    from trackside.codec import number_or_name
    from trackside.series import Series

    newest = cast(list[Any], store.client.xrevrange(keys.metrics(job_id), count=_RECENT_BATCHES))
    after = newest[-1][0].decode() if len(newest) == _RECENT_BATCHES else "-"
    series, summary = Series(), dict[str, Any]()
    for _, attempt, batch in streams.batches(store.client, job_id, after=after):
        series.add(attempt, batch)
        summary.update(batch.summary)
    found = {}
    for name, columns in series.columns.items():
        if len(columns):
            value = number_or_name(columns.values[-1])
            found[name] = {"step": columns.steps[-1], "value": value, "attempt": columns.attempts[-1]}
    return found, summary


def _result(value: Any) -> str:
    import orjson

    # A whole number keeps its digits: it counts something, such as parameters.
    text = number(value) if value is None or isinstance(value, str | float) else orjson.dumps(value).decode()
    return text if len(text) <= _RESULT_CHARS else f"{text[:_RESULT_CHARS]}..."


def last_points(attempt: int, batch: Batch) -> dict[str, dict[str, Any]]:
    """The newest point of each series of a batch."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in batch.series.items():
        for step, value in zip(reversed(batch.steps), reversed(values), strict=False):
            if value is not None:
                found[name] = {"step": step, "value": value, "attempt": attempt}
                break
    return found


def _facts(job: Job, newest: Attempt | None, row: dict[str, Any], now: int) -> None:
    from trackside import line, wording

    spec = job.spec
    retry = None if job.retry_at_ms is None else f"in {span(max(0, job.retry_at_ms - now) / 1000)}"
    lines: list[tuple[str, object]] = [
        ("Job", job.id),
        ("Name", job.name),
        ("State", f"{job.state} for {age(job.changed_at_ms, now)}"),
        ("Why", "; ".join(filter(None, (job.detail, wording.left_early(newest)))) or None),
        ("Place", row["unfit"] or (None if row["place"] is None else line.words(row["place"]))),
        ("Last reason", job.reason),
        ("Next try", retry),
        ("Step", progress(row["step"], row["total_steps"]) if row["step"] is not None else None),
        ("Last step", f"{span(row['last_step_s'])} ago" if row["last_step_s"] is not None else None),
        ("Speed", f"{row['steps_per_s']:.4g} steps/s" if row["steps_per_s"] is not None else None),
        ("Slot", job.slot),
        ("Program", wording.program(spec)),
        ("Python", spec.python),
        ("Parameters", _params(spec.params)),
        ("Device", spec.device),
        ("Retries", f"{spec.retries} ({job.failures} used since the last newer checkpoint)"),
        ("Priority", None if spec.priority == "normal" else spec.priority),
        ("After", ", ".join(spec.after) or None),
        ("Retry of", spec.retry_of),
        ("Time limit", None if spec.timeout_s is None else span(spec.timeout_s)),
        ("Each attempt", None if spec.attempt_timeout_s is None else span(spec.attempt_timeout_s)),
        ("Stall limit", None if spec.stall_limit_s is None else wording.stall_limit(spec.stall_limit_s, span)),
        ("Ran", span(job.ran_ms / 1000) if job.ran_ms else None),
        ("Submitted", f"{when(job.created_at_ms)} by {spec.submitted_by or 'somebody'}"),
        ("Ended", None if job.ended_at_ms is None else when(job.ended_at_ms)),
        ("Snapshot", None if spec.snapshot is None else spec.snapshot[:16]),
    ]
    for title, value in lines:
        if value is not None:
            print(f"{title + ':':<13}{plain(value)}")


def _params(params: dict[str, Any]) -> str | None:
    import orjson

    return orjson.dumps(params).decode() if params else None


def _attempts(attempts: list[Attempt], now: int) -> None:
    columns = [
        Column(title="N", justify="right"), Column(title="SLOT"), Column(title="START"),
        Column(title="RAN", justify="right"), Column(title="END"), Column(title="STEPS", justify="right"),
        Column(title="FROM", justify="right"), Column(title="DETAIL", note=True),
    ]  # fmt: skip
    print_table(columns, [_attempt_row(attempt, now) for attempt in attempts])


def _attempt_row(attempt: Attempt, now: int) -> tuple[object, ...]:
    from trackside import wording

    outcome = attempt.outcome
    steps = None
    if outcome is not None and outcome.last_step is not None:
        steps = f"{outcome.first_step if outcome.first_step is not None else '?'}-{outcome.last_step}"
    start_ms, ran_ms = attempt.started_at_ms, wording.ran_ms(attempt, now)
    ran = None if ran_ms is None else span(ran_ms / 1000)
    end = attempt.state.value if outcome is None else outcome.reason.value
    resumed = attempt.resumed_step
    return (
        attempt.number, attempt.slot, when(start_ms or attempt.assigned_at_ms), ran, end, steps,
        None if resumed is None else f"step {resumed}", wording.end(attempt) or None,
    )  # fmt: skip


def _bad_ends(attempts: list[Attempt]) -> list[Attempt]:
    """The attempts whose evidence is shown: the newest that ended badly, and each hang's, whose stacks name its place.

    What came after does not matter: a job that succeeds in the end has hung all the same.
    """
    from trackside.models import GOOD_ENDS, Reason

    bad = [each for each in attempts if each.outcome is not None and each.outcome.reason not in GOOD_ENDS]
    return [each for each in bad if each is bad[-1] or (each.outcome and each.outcome.reason is Reason.STALLED)]


def _failure(attempt: Attempt) -> None:
    from trackside import wording

    outcome = attempt.outcome
    if outcome is None:
        return
    failure, evidence = outcome.failure, outcome.evidence
    if failure is not None:
        print(f"\nFailure of attempt {attempt.number}")
        if failure.traceback:  # the last output has it too
            print(block(failure.traceback).rstrip())
            return
        print(plain(wording.error(failure)))
    if evidence:
        print(f"\nEvidence of attempt {attempt.number}")
        for text in evidence:
            print(block(text).rstrip())
