"""The listings of the command line, for people and as JSON, on a real server with seeded jobs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from cli_world import HOSTILE_NAME, SLOT, SPEC, World, terminal_output
from trackside.bus import beats, keys, streams
from trackside.bus.client import now_ms
from trackside.cli.app import app
from trackside.codec import encode
from trackside.models import Batch, Beat, JobState, Outcome, Reason, Role, Slot


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


@pytest.mark.parametrize("command", [["ls"], ["show", "evil-1"], ["events"], ["top", "--once"], ["cancel", "evil-1"]])
def test_hostile_names_reach_no_terminal(world: World, command: list[str]) -> None:
    world.queued("evil-1", HOSTILE_NAME)

    out = world.run(*command).out

    assert not set(out) & {"\x1b", "\x07", "\u202e", "\x9b"}
    if command[0] in ("ls", "show"):
        assert "evil [red]x[/red] end" in out, "brackets are text, not markup"
        assert "owned" not in out
    (row,) = world.run("ls", "--json").json["jobs"]
    assert row["name"] == HOSTILE_NAME, "programs get what was stored"


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


def test_show_tells_attempts_checkpoints_metrics_and_the_failure(world: World) -> None:
    world.running("digits-abc123")
    world.failed("broken-111111")

    running = world.run("show", "digits-abc123").out
    assert "step-2-1" in running
    assert "120.6 KiB" in running
    assert "train.py --lr 0.1" in running
    assert "acc" in running

    failed = world.run("show", "broken-111111").out
    assert "ValueError: bad" in failed
    assert "1-7" in failed
    assert "\x1b" not in failed

    document = world.run("show", "broken-111111", "--json").json
    assert set(document) == {"now_ms", "job", "progress", "attempts", "metrics"}
    assert document["attempts"][0]["outcome"]["reason"] == "user_error"
    assert document["job"]["retry_at_ms"] is None
    assert world.run("show", "digits-abc123", "--json").json["metrics"]["acc"] == {
        "step": 3,
        "value": 0.6,
        "attempt": 1,
    }


def test_show_has_series_that_are_logged_rarely(world: World) -> None:
    world.running("digits-abc123")
    for step in range(4, 40):
        batch = Batch(steps=(step,), at_ms=(step,), series={"loss": (1.0,)})
        streams.ship_batch(world.client, "digits-abc123", 1, step * 10, batch)

    metrics = world.run("show", "digits-abc123", "--json").json["metrics"]
    assert metrics["acc"] == {"step": 3, "value": 0.6, "attempt": 1}
    assert metrics["loss"] == {"step": 39, "value": 1.0, "attempt": 1}


def test_metrics_take_the_newest_attempt_of_each_step(world: World) -> None:
    world.running("digits-abc123")
    with world.client.pipeline() as pipe:
        streams.open_attempt(pipe, "digits-abc123", 2)
        pipe.execute()
    streams.ship_batch(
        world.client, "digits-abc123", 2, 10, Batch(steps=(3, 4), at_ms=(1, 2), series={"loss": (1.5, 1.0)})
    )

    document = world.run("metrics", "digits-abc123", "--json").json
    assert document["series"]["loss"] == [[1, 3.0, 1], [2, 2.0, 1], [3, 1.5, 2], [4, 1.0, 2]]
    assert document["total_steps"] == 100
    assert list(world.run("metrics", "digits-abc123", "--json", "--name", "a*").json["series"]) == ["acc"]
    lines = world.run("metrics", "digits-abc123", "--csv", "--name", "loss").out.splitlines()
    assert lines == ["name,step,value,attempt", "loss,1,3.0,1", "loss,2,2.0,1", "loss,3,1.5,2", "loss,4,1.0,2"]
    (row,) = [
        line.split() for line in world.run("metrics", "digits-abc123").out.splitlines() if line.startswith("loss")
    ]
    assert row == ["loss", "1", "4", "1", "3", "4"]


def test_metrics_that_json_has_no_number_for_keep_their_names(world: World) -> None:
    world.running("digits-abc123")

    assert world.run("metrics", "digits-abc123", "--json").json["series"]["loss"][-1] == [3, "NaN", 1]


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
        assert "silent for 3m2" in told
        assert " far-1 " in told


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
    assert line[: heading.index("LAST STEP") + len("LAST STEP")].split()[-1].startswith("4m0"), "under its heading"
    assert "LAST STEP" in world.run("top", "--once").out
    assert "4m0" in world.run("top", "--once").out
    assert "Last step:   4m0" in world.run("show", "digits").out

    for unknown in (replace(old, step_age_s=None), replace(old, step=None)):
        world.client.set(keys.beat(Role.WORKER, "box-cpu0"), encode(unknown))
        (row,) = [row for row in world.run("ps", "--json").json["processes"] if row["role"] == "worker"]
        assert row["last_step_s"] is None
        heading, line = world.run("ps").out.splitlines()[:2]
        assert line[: heading.index("LAST STEP") + len("LAST STEP")].split()[-1] == "-"
        assert "Last step" not in world.run("show", "digits").out


def test_show_tells_the_submitters_own_stall_limit(world: World) -> None:
    world.queued("usual-1")
    assert "Stall limit" not in world.run("show", "usual-1").out
    for limit_s, told in ((2700.0, "Stall limit: 45m00s without a step"), (0.0, "Stall limit: none")):
        world.store.submit(f"own-{limit_s:g}", "own", replace(SPEC, stall_limit_s=limit_s))
        assert told in world.run("show", f"own-{limit_s:g}").out


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


def test_events_tell_cause_and_inputs(world: World) -> None:
    world.failed("broken-111111")
    world.queued("other-1")

    events = world.run("events", "broken-111111", "--json").json["events"]
    assert [event["kind"] for event in events] == [
        "submitted", "assigned", "started", "transition", "ended", "transition",
    ]  # fmt: skip
    assert events[-1]["old"] == "running"
    assert events[-1]["new"] == "failed"
    assert "other-1" not in world.run("events", "broken-111111").out
    everything = world.run("events").out
    assert "other-1" in everything
    assert "running -> failed" in everything
    assert len(world.run("events", "--tail", "2").out.splitlines()) == 2


def test_top_draws_one_frame_with_slots_waiting_jobs_and_events(world: World) -> None:
    world.running("digits-abc123")
    world.queued("later-1")

    out = world.run("top", "--once").out

    assert "1 queued  1 running  0 ended" in out
    assert "7.8s" in out, "97 steps at 12.5 steps/s"
    assert "later-1" in out
    assert "NaN" in out


def test_a_job_is_found_by_id_by_unique_beginning_and_by_unique_name(world: World) -> None:
    world.queued("alpha-1", "first")
    world.queued("alpha-12", "second")
    world.queued("beta-1", "second")

    def found(text: str) -> str:
        return str(world.run("show", text, "--json").json["job"]["id"])

    assert found("alpha-1") == "alpha-1", "an exact id wins over the ids it begins"
    assert found("first") == "alpha-1"
    assert found("b") == "beta-1"
    for text in ("alpha", "second"):
        error = world.run("show", text, code=2).err
        assert "alpha-12" in error
        assert "fits 2 jobs" in error
    world.queued("first-9", "other")
    assert found("first") == "alpha-1", "a whole name wins over the beginning of an id"
    world.store.cancel("alpha-12")
    assert found("second") == "beta-1", "of several with one name, the one that has not ended"
    world.store.cancel("beta-1")
    assert "fits 2 jobs" in world.run("show", "second", code=2).err
    assert "trackside ls" in world.run("show", "nothing", code=2).err
    assert world.run("show", "", code=2).err.startswith("trackside: ")


def test_help_of_every_command_works_without_a_server() -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    group = get_command(app)
    names = sorted(group.commands)  # type: ignore[attr-defined]  # a group by construction
    assert {"submit", "ls", "show", "logs", "metrics", "events", "wait", "cancel", "top", "doctor"} <= set(names)
    for name in names:
        answer = CliRunner().invoke(app, [name, "--help"], env={"TRACKSIDE_BEAT_S": "nonsense"})
        assert answer.exit_code == 0, (name, answer.output)
        assert "Usage" in answer.stdout


def _imported_after(names: list[str], args: list[str]) -> list[str]:
    """Which of these modules a command has imported, in a fresh interpreter."""
    program = (
        "import sys\n"
        "from trackside.cli.app import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        f"print(*[name for name in {names} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1].split()


def test_the_quick_commands_import_nothing_heavy(world: World) -> None:
    world.running("digits-abc123")
    heavy = ["rq", "torch", "streamlit", "pandas", "numpy"]
    for args in (["ls"], ["show", "digits-abc123"], ["ps"], ["metrics", "digits-abc123"]):
        assert _imported_after(heavy, ["--home", str(world.home), *args]) == []


def test_help_imports_neither_redis_nor_rich() -> None:
    assert _imported_after(["redis", "rich.console", "structlog"], ["--help"]) == []
