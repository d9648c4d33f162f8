"""`show`, `metrics` and `events` of one job, for people and as JSON, and how that job may be named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cli_world import SPEC, World
from trackside.bus import streams
from trackside.models import Batch


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
    assert set(document) == {"now_ms", "job", "progress", "attempts", "metrics", "summary"}
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


def test_show_has_the_runs_results_as_they_were_told_last(world: World) -> None:
    world.running("digits-abc123")
    assert "Summary" not in world.run("show", "digits-abc123").out
    told: list[dict[str, Any]] = [
        {"acc": 0.5, "best": "NaN", "text": "\x1b[31mred\x1b[0m"},
        {"acc": 0.123456789, "classes": ["a", "b"], "long": "x" * 5000, "params": 123_456_789},
    ]
    for at, summary in enumerate(told):
        streams.ship_batch(world.client, "digits-abc123", 1, 100 + at, Batch(summary=summary))

    out = world.run("show", "digits-abc123").out
    shown = out[out.index("Summary\n") :].splitlines()
    assert [line.split() for line in shown[1:7]] == [
        ["NAME", "VALUE"],
        ["acc", "0.123457"],
        ["best", "NaN"],
        ["classes", '["a","b"]'],
        ["long", "x" * 200 + "..."],
        ["params", "123456789"],
    ]
    assert shown[7].split() == ["text", "red"]
    assert world.run("show", "digits-abc123", "--json").json["summary"] == {**told[0], **told[1]}


def test_show_tells_the_submitters_own_stall_limit(world: World) -> None:
    world.queued("usual-1")
    assert "Stall limit" not in world.run("show", "usual-1").out
    for limit_s, told in ((2700.0, "Stall limit: 45m00s without a step"), (0.0, "Stall limit: none")):
        world.store.submit(f"own-{limit_s:g}", "own", replace(SPEC, stall_limit_s=limit_s))
        assert told in world.run("show", f"own-{limit_s:g}").out


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
