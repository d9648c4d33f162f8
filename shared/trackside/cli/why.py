"""`why`: what became of a job and by which rules, in plain words."""

from __future__ import annotations

from typing import Annotated

import typer

from trackside.cli.context import find_job, store_of
from trackside.cli.observe import place_of
from trackside.cli.options import OneJob
from trackside.cli.render import plain, print_json, when


def why(
    ctx: typer.Context,
    job: OneJob,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Tell a job's story: where each attempt ran, why it ended, what was decided by which rule, and what comes next.

    --json: {"now_ms", "job", "state", "place", "story": [{"at_ms", "attempt", "text"}], "obstacles": [...]}; place is
    the job's in line for a slot, from 1; the last of the story comes next, and obstacles say for each slot why a queued
    job is not on it.
    """
    from trackside.bus import beats, streams
    from trackside.bus.client import now_ms
    from trackside.line import is_in_line, unled
    from trackside.story import obstacles, tell

    store = store_of(ctx)
    found = find_job(store, job)
    place = place_of(store, found)
    events = [event for _, event in streams.history(store.client, found.id)]
    there = {parent.id: parent for parent in store.jobs(found.spec.after)}
    parents = {name: there.get(name) for name in found.spec.after}
    heard = beats.read(store.client)
    now = now_ms(store.client)
    story = tell(found, store.attempts(found), events, now, place=place, parents=parents, unled=unled(heard))
    in_the_way: list[str] = []
    if is_in_line(found):
        slots = store.slots()
        in_the_way = obstacles(found, slots, store.breakers(slot.id for slot in slots), heard, now)
    if as_json:
        lines = [{"at_ms": each.at_ms, "attempt": each.attempt, "text": each.text} for each in story]
        print_json(
            {
                "now_ms": now,
                "job": found.id,
                "state": found.state.value,
                "place": place,
                "story": lines,
                "obstacles": in_the_way,
            }
        )
        return
    print(plain(f"{found.id} is {found.state}" + (f": {found.detail}" if found.detail else "")))
    for each in story:
        print(plain(f"{when(each.at_ms) if each.at_ms is not None else '→'}  {each.text}"))
    for text in in_the_way:
        print(f"   {plain(text)}")
