"""`why`: what became of a job and by which rules, in plain words."""

from __future__ import annotations

from typing import Annotated

import typer

from trackside.cli.context import find_job, store_of
from trackside.cli.control import OneJob
from trackside.cli.render import plain, print_json, when


def why(
    ctx: typer.Context,
    job: OneJob,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Tell a job's story: where each attempt ran, why it ended, what was decided by which rule, and what comes next.

    --json: {"now_ms", "job", "state", "story": [{"at_ms", "attempt", "text"}]}; the last one comes next.
    """
    from trackside.bus import streams
    from trackside.bus.client import now_ms
    from trackside.story import tell

    store = store_of(ctx)
    found = find_job(store, job)
    events = [event for _, event in streams.history(store.client, found.id)]
    now = now_ms(store.client)
    story = tell(found, store.attempts(found), events, now)
    if as_json:
        lines = [{"at_ms": each.at_ms, "attempt": each.attempt, "text": each.text} for each in story]
        print_json({"now_ms": now, "job": found.id, "state": found.state.value, "story": lines})
        return
    print(plain(f"{found.id} is {found.state}" + (f": {found.detail}" if found.detail else "")))
    for each in story:
        print(plain(f"{when(each.at_ms) if each.at_ms is not None else '→'}  {each.text}"))
