"""`ps` and `slots`, for people and as JSON, on a real server with seeded beats."""

from __future__ import annotations

from dataclasses import replace

from cli_world import World
from trackside.bus import beats, keys
from trackside.bus.client import now_ms
from trackside.codec import encode
from trackside.models import Beat, Role, Slot


def test_ps_shows_beating_silent_and_the_launchers_children(world: World) -> None:
    world.running("digits-abc123")
    launcher = Beat(
        role=Role.LAUNCHER, name="box-1", host="box", pid=1, started_at_ms=1, at_ms=1,
        children={"redis": 2, "dashboard": 3, "trainer": 5},
    )  # fmt: skip
    beats.publish(world.client, launcher, 60)
    beats.publish(world.client, Beat(role=Role.WORKER, name="gone", host="far", pid=9, started_at_ms=1, at_ms=1), 0.001)

    rows = {row["role"] + ":" + (row["name"] or ""): row for row in world.run("ps", "--json").json["processes"]}

    assert rows["worker:gone"]["status"] == "silent"
    assert rows["worker:box-cpu0"]["status"] == "ok"
    assert rows["worker:box-cpu0"]["job"] == "digits-abc123"
    assert rows["worker:box-cpu0"]["rss_mib"] == 512.3
    assert rows["redis:"]["pid"] == 2
    assert rows["dashboard:"]["host"] == "box"
    assert "trainer:" not in rows, "pid 5 beats itself: one process, one line"
    human = world.run("ps").out
    assert "silent" in human
    assert "3/100" in human


def test_ps_tells_who_a_silent_process_was_and_since_when(world: World) -> None:
    for role, name in ((Role.AGENT, "far-1"), (Role.SUPERVISOR, "far-1-77"), (Role.WORKER, "far-1-cpu0")):
        beat = Beat(role=role, name=name, host="far-1", pid=77, started_at_ms=1, at_ms=1)
        beats.publish(world.client, beat, 0.001)
        world.client.zincrby(keys.DEADLINES, -200_000, keys.deadline_member(role, name))

    rows = {row["role"]: row for row in world.run("ps", "--json").json["processes"]}
    assert {role: (row["name"], row["host"], row["pid"], row["slot"]) for role, row in rows.items()} == {
        "agent": ("far-1", "far-1", None, None),
        "supervisor": ("far-1-77", "far-1", 77, None),
        "worker": ("far-1-cpu0", "far-1", None, "far-1-cpu0"),
    }
    assert all(200 <= row["silent_s"] < 260 for row in rows.values())
    lines = world.run("ps").out.splitlines()[1:]
    assert len(lines) == 3
    for told in lines:
        assert "silent for 3m" in told
        assert " far-1 " in told


def test_the_last_step_ages_with_the_beat_that_told_of_it_and_is_unknown_where_none_did(world: World) -> None:
    world.running("digits-abc123")
    beat = beats.read(world.client)["worker:box-cpu0"]
    assert beat is not None
    now = now_ms(world.client)
    old = replace(beat, at_ms=now - 40_000, step_age_s=200.0)
    world.client.set(keys.beat(Role.WORKER, "box-cpu0"), encode(old))

    (row,) = [row for row in world.run("ps", "--json").json["processes"] if row["role"] == "worker"]
    assert 240.0 <= row["last_step_s"] < 300.0
    (job,) = world.run("ls", "--json").json["jobs"]
    assert 240.0 <= job["last_step_s"] < 300.0
    heading, line = world.run("ps").out.splitlines()[:2]
    assert line[: heading.index("LAST STEP") + len("LAST STEP")].split()[-1].startswith("4m"), "under its heading"
    assert "LAST STEP" in world.run("top", "--once").out
    assert "4m" in world.run("top", "--once").out
    assert "Last step:   4m" in world.run("show", "digits").out

    for unknown in (replace(old, step_age_s=None), replace(old, step=None)):
        world.client.set(keys.beat(Role.WORKER, "box-cpu0"), encode(unknown))
        (row,) = [row for row in world.run("ps", "--json").json["processes"] if row["role"] == "worker"]
        assert row["last_step_s"] is None
        heading, line = world.run("ps").out.splitlines()[:2]
        assert line[: heading.index("LAST STEP") + len("LAST STEP")].split()[-1] == "-"
        assert "Last step" not in world.run("show", "digits").out


def test_slots_are_free_busy_or_silent(world: World) -> None:
    world.running("digits-abc123")
    world.failed("broken-111111")  # its slot's worker never beat
    states = {row["id"]: row["state"] for row in world.run("slots", "--json").json["slots"]}
    assert states == {"box-cpu0": "busy", "box-cpu1": "silent"}
    assert "CPU, 2 threads" in world.run("slots").out


def test_slots_say_why_a_gpu_takes_no_job(world: World) -> None:
    slot = Slot(id="box-gpu0", host="box", kind="gpu", storage="s", gpu_uuid="GPU-a")
    world.store.register_slot(slot)
    beat = Beat(role=Role.WORKER, name="box-gpu0", host="box", pid=1, started_at_ms=0, at_ms=0, slot="box-gpu0")
    beats.publish(world.store.client, beat, 60)
    held = "its GPU is in use: process 4242 holds 20000 MiB"
    world.store.tell_gpu("box-gpu0", blocked=held, throttled="heat", events=[])
    row = next(row for row in world.run("slots", "--json").json["slots"] if row["id"] == "box-gpu0")
    assert (row["state"], row["blocked"], row["throttled"]) == ("blocked", held, "heat")
    out = " ".join(world.run("slots").out.split())
    assert "process 4242 holds 20000 MiB" in out
    assert "slow: heat" in out
    world.store.cordon("box-gpu0", cordoned=True, why="Xid 79: it has fallen off the bus")
    row = next(row for row in world.run("slots", "--json").json["slots"] if row["id"] == "box-gpu0")
    assert (row["state"], row["cordon_reason"]) == ("cordoned", "Xid 79: it has fallen off the bus")
    assert "Xid 79" in world.run("slots").out
