"""`ls`, for people and as JSON, on a real server with seeded jobs."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cli_world import SLOT, SPEC, World, terminal_output
from trackside.bus import beats
from trackside.models import Beat, JobState, Outcome, Reason, Role


def test_ls_shows_where_each_job_is_newest_first(world: World) -> None:
    world.running("digits-abc123")
    world.failed("broken-111111")
    world.queued("waiting-222222")

    lines = world.run("ls").out.splitlines()

    assert [line.split()[0] for line in lines] == ["ID", "waiting-222222", "broken-111111", "digits-abc123"]
    assert "waits for a free slot" in lines[1]
    assert "failed" in lines[2]
    assert "user_error: the program failed" in lines[2]
    assert "3/100" in lines[3]
    assert "box-cpu0" in lines[3]


def test_ls_json_has_stable_keys_and_progress_from_the_beat(world: World) -> None:
    world.running("digits-abc123")

    (row,) = world.run("ls", "--json").json["jobs"]

    assert set(row) == {
        "id", "name", "state", "step", "total_steps", "steps_per_s", "last_step_s", "attempt", "slot", "reason",
        "detail", "place", "unfit", "created_at_ms", "changed_at_ms", "ended_at_ms", "retry_at_ms", "checkpoint_step",
    }  # fmt: skip
    assert (row["step"], row["total_steps"], row["steps_per_s"], row["checkpoint_step"]) == (3, 100, 12.5, 2)
    assert (row["state"], row["attempt"], row["slot"]) == ("running", 1, "box-cpu0")


def test_a_beat_of_an_older_attempt_is_no_progress(world: World) -> None:
    world.failed("broken-111111")
    old = Beat(
        role=Role.WORKER, name="s", host="h", pid=1, started_at_ms=1, at_ms=1, job="broken-111111", attempt=1, step=99
    )
    beats.publish(world.client, old, 60)

    (row,) = world.run("ls", "--json").json["jobs"]

    assert row["step"] == 7


def test_ls_keeps_live_jobs_in_sight_and_says_what_it_left_out(world: World) -> None:
    world.queued("oldest-live")
    for number in range(25):
        world.queued(f"done-{number}")
        world.finish(f"done-{number}", JobState.CANCELLED)

    result = world.run("ls")
    assert "oldest-live" in result.out
    assert "5 older jobs: trackside ls --all" in result.err
    assert len(world.run("ls", "--json").json["jobs"]) == 21
    assert len(world.run("ls", "--json", "--all").json["jobs"]) == 26
    assert [row["id"] for row in world.run("ls", "--json", "--limit", "2").json["jobs"]] == ["done-24", "done-23"]
    queued = world.run("ls", "--json", "--state", "queued").json["jobs"]
    assert [row["id"] for row in queued] == ["oldest-live"]
    assert len(world.run("ls", "--json", "--state", "cancelled", "--limit", "3").json["jobs"]) == 3


def test_an_empty_bus_is_told_to_people_and_is_an_empty_list_to_programs(world: World) -> None:
    assert "trackside submit" in world.run("ls").err
    assert world.run("ls", "--json").json["jobs"] == []
    assert world.run("ps", "--json").json["processes"] == []
    assert world.run("slots", "--json").json["slots"] == []
    assert world.run("events", "--json").json == {"events": []}


def test_long_ids_are_never_cropped(world: World) -> None:
    long_id = "x" * 64
    world.queued(long_id, "n" * 120)

    assert long_id in world.run("ls").out


def test_at_80_columns_ids_stay_whole_and_reasons_get_their_own_line(world: World) -> None:
    world.running("digits-abc123")
    world.failed("a-rather-long-name-of-a-job-111111", "a rather long name of a job")

    for role in (Role.SUPERVISOR, Role.AGENT):
        beats.publish(world.client, Beat(role=role, name="box", host="box", pid=123456, started_at_ms=1, at_ms=1), 60)

    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal_output(world, "ls")).splitlines()

    assert max(map(len, lines)) <= 80
    at = next(n for n, line in enumerate(lines) if line.startswith("a-rather-long-name-of-a-job-111111 "))
    assert lines[at + 1].strip().startswith("user_error: the program failed")
    for command in (["ps"], ["slots"], ["top", "--once"], ["show", "digits"]):
        assert "digits-abc123" in terminal_output(world, *command), command


def test_ls_tells_a_job_that_waits_for_a_slot_of_which_none_is_there(world: World) -> None:
    world.running("digits-abc123")
    world.store.submit("gpu-1", "waits", replace(SPEC, device="gpu"))
    world.store.submit("later-cpu", "waits", replace(SPEC, device="cpu"))

    lines = {line.split()[0]: line for line in world.run("ls").out.splitlines()}
    assert lines["gpu-1"].endswith("waits for a free slot: no GPU slot is there")
    assert lines["later-cpu"].endswith("waits for a free slot, 2nd in line")
    rows = {row["id"]: row["unfit"] for row in world.run("ls", "--json").json["jobs"]}
    assert rows == {"gpu-1": "no GPU slot is there", "later-cpu": None, "digits-abc123": None}
    assert "no GPU slot is there" in world.run("show", "gpu-1").out
    assert "no GPU slot is there" in world.run("top", "--once").out


def test_ls_names_the_reason_of_an_end_only_where_it_led_to_the_state(world: World) -> None:
    def told(job_id: str) -> str:
        (row,) = [row for row in world.run("ls").out.splitlines() if row.startswith(job_id)]
        return row

    world.running("again-1")
    world.store.pause("again-1")
    world.store.end_attempt("again-1", 1, Outcome(reason=Reason.PAUSED))
    world.finish("again-1", JobState.PAUSED)
    world.store.cancel("again-1")
    assert told("again-1").endswith("  cancelled before it ran again")

    world.running("moved-1")
    world.store.end_attempt("moved-1", 1, Outcome(reason=Reason.PREEMPTED))
    world.finish("moved-1", JobState.QUEUED, "waits for a free slot")
    assert "preempted: waits for a free slot" in told("moved-1")
    world.store.assign("moved-1", SLOT, lambda _pipe, _job: None)
    world.store.claim("moved-1", 2, worker_pid=5)
    assert "preempted" not in told("moved-1")


def test_who_waits_is_told_its_place_in_line_even_where_the_others_are_not_listed(world: World) -> None:
    world.running("digits-abc123")
    waiting: list[tuple[str, Any]] = [
        ("first-1", "normal"),
        ("second-2", "normal"),
        ("third-3", "low"),
        ("urgent-4", "high"),
    ]
    for job_id, priority in waiting:
        world.store.submit(job_id, "waits", replace(SPEC, priority=priority))

    places = {row["id"]: row["place"] for row in world.run("ls", "--json").json["jobs"]}
    assert places == {"digits-abc123": None, "urgent-4": 1, "first-1": 2, "second-2": 3, "third-3": 4}
    lines = {line.split()[0]: line for line in world.run("ls", "--limit", "2").out.splitlines()}
    assert lines["third-3"].endswith("waits for a free slot, 4th in line")
    assert lines["urgent-4"].endswith("waits for a free slot, next in line")
    assert "next: waits for a free slot (3rd in line)" in world.run("why", "second-2").out
    assert world.run("why", "second-2", "--json").json["place"] == 3
    assert "3rd in line" in world.run("show", "second-2").out
    top = [line.split()[0] for line in world.run("top", "--once").out.splitlines() if " in line" in line]
    assert top == ["urgent-4", "first-1", "second-2", "third-3"]
