"""Job and slot control by the command line: one effect each, and the exit codes tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli_world import SLOT, SPEC, World
from trackside.bus import beats
from trackside.errors import BusUnavailable
from trackside.jobstore import Change
from trackside.line import FREE_SLOT
from trackside.models import Beat, Breaker, BreakerState, EventKind, Job, JobState, Outcome, Reason, Role
from trackside.store import Store


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "train.py").write_text("print('hi')\n")
    monkeypatch.chdir(tmp_path)
    return "train.py"


def test_submit_takes_priority_limits_and_parents(world: World, train: str) -> None:
    world.queued("first", "data")
    world.queued("second")
    options = ["--priority", "high", "--after", "data", "--after", "second", "--attempt-timeout", "10m"]
    job = world.store.job(world.run("submit", train, *options).out.strip())
    assert (job.spec.priority, job.spec.after, job.spec.attempt_timeout_s) == ("high", ("first", "second"), 600.0)
    shown = world.run("show", job.id).out
    assert "After:       first, second" in shown
    assert "waits for first, second to succeed" in shown


def test_a_parent_that_is_not_there_is_refused_before_anything_is_sent(world: World, train: str) -> None:
    result = world.run("submit", train, "--after", "nobody", code=2)
    assert "nobody" in result.err
    assert world.store.job_ids() == []


def test_resume_goes_back_to_a_named_checkpoint(world: World) -> None:
    world.running("j")
    world.store.pause("j")
    world.store.end_attempt("j", 1, Outcome(reason=Reason.PAUSED))
    world.finish("j", JobState.PAUSED)
    assert "step-2-1" in world.run("resume", "j", "--from", "nothing", code=2).err
    assert world.run("resume", "j", "--from", "step-2-1", "--json").json["jobs"][0]["state"] == "queued"
    world.run("resume", "j", "--from", "step-2-1")


def test_retry_prints_the_new_id_and_leaves_the_old_job(world: World) -> None:
    old = world.failed("broken")
    new = world.store.job(world.run("retry", "broken").out.strip())
    assert (new.spec.retry_of, new.state) == ("broken", JobState.QUEUED)
    assert world.store.job("broken") == old
    assert world.run("retry", "broken", "--id", "again", "--fresh", "--json").json["spec"]["retry_of"] == "broken"
    world.run("retry", "broken", "--id", "again")
    assert len(world.store.job_ids()) == 3
    assert "choose another" in world.run("retry", "broken", "--id", "broken", code=2).err
    assert "cancel it first" in world.run("retry", "again", code=2).err


@pytest.mark.parametrize(
    ("cut", "code"),
    [(KeyboardInterrupt(), 130), (BusUnavailable("no answer from the server"), 3)],
    ids=["ctrl-c", "line"],
)
@pytest.mark.parametrize("command", ["retry", "submit"])
def test_what_was_sent_and_not_answered_may_be_there_and_that_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, cut: BaseException, code: int
) -> None:
    world.failed("broken")
    (tmp_path / "train.py").write_text("print('hi')\n")
    do = getattr(Store, command)

    def cut_short(self: Store, *args: Any, **kwargs: Any) -> Job:
        do(self, *args, **kwargs)
        raise cut

    monkeypatch.setattr(Store, command, cut_short)
    target = "broken" if command == "retry" else str(tmp_path / "train.py")
    told = world.run(command, target, "--id", "again", code=code)
    assert told.out == ""
    assert "again may be on the bus: `trackside show again` tells" in told.err
    assert world.store.job("again").state is JobState.QUEUED


def test_a_job_that_was_only_slow_is_retried_with_another_stall_limit(world: World) -> None:
    world.failed("broken")
    limits = {"45m": 2700.0, "none": 0.0}
    for text, limit_s in limits.items():
        new = world.run("retry", "broken", "--id", f"by-{text}", "--stall-limit", text, "--json").json
        assert (new["spec"]["stall_limit_s"], new["spec"]["retry_of"]) == (limit_s, "broken")
    world.run("retry", "broken", "--id", "by-45m", "--stall-limit", "45m")
    assert "another stall limit" in world.run("retry", "broken", "--id", "by-45m", "--stall-limit", "1h", code=2).err
    world.finish("by-45m", JobState.CANCELLED)
    assert world.run("retry", "by-45m", "--json").json["spec"]["stall_limit_s"] == 2700.0, "as before"


def test_slots_say_why_they_take_no_work(world: World) -> None:
    world.running("j")
    world.run("cordon", SLOT.id)
    row = world.run("slots", "--json").json["slots"][0]
    assert (row["state"], row["cordoned"], row["breaker"]) == ("busy", True, "closed")
    assert "trackside uncordon" in world.run("slots").out
    open_ = Breaker(slot=SLOT.id, state=BreakerState.OPEN, failed=("a", "b"), openings=1, until_ms=10**14)
    world.store.move_breaker(None, open_, cause="breaker open")
    assert "2 different jobs crashed on it" in world.run("slots").out
    world.run("uncordon", SLOT.id)
    row = world.run("slots", "--json").json["slots"][0]
    assert (row["cordoned"], row["breaker"]) == (False, "closed")
    assert world.run("cordon", "nowhere", code=2).err.startswith("trackside: no slot")


def test_why_tells_the_story_and_what_to_do(world: World) -> None:
    world.failed("broken")
    out = world.run("why", "broken").out
    assert "broken is failed" in out
    assert "attempt 1 ended: user_error (ValueError: bad)" in out
    assert "`trackside retry broken`" in out
    story = world.run("why", "broken", "--json").json["story"]
    assert [each["at_ms"] is None for each in story] == [False] * (len(story) - 1) + [True]


def test_why_says_what_keeps_a_queued_job_off_each_slot(world: World) -> None:
    world.running("busy")
    world.queued("j")
    assert f"   {SLOT.id} is busy with busy" in world.run("why", "j").out
    assert world.run("why", "j", "--json").json["obstacles"] == [f"{SLOT.id} is busy with busy"]


def test_why_says_what_keeps_a_job_off_each_slot_once_those_that_it_waits_for_have_succeeded(world: World) -> None:
    world.running("busy")
    world.store.submit("j", "j", replace(SPEC, after=("busy",)))
    told = world.run("why", "j", "--json").json
    assert (told["place"], told["obstacles"]) == (None, [])
    world.store.change("j", lambda job, _: Change(job=replace(job, detail=FREE_SLOT)))
    told = world.run("why", "j", "--json").json
    assert (told["place"], told["obstacles"]) == (1, [f"{SLOT.id} is busy with busy"])


def test_why_is_harmless_whatever_a_name_holds(world: World) -> None:
    world.store.submit("j", "\x1b[31mevil", replace(SPEC, submitted_by="\x1b]0;owned\x07"))
    assert "\x1b" not in world.run("why", "j").out


def test_why_says_that_nobody_gives_anything_out_where_no_supervisor_is_heard(world: World) -> None:
    world.running("busy")
    world.queued("j")
    unled = "no supervisor is heard: nothing is given out; see `trackside ps`"
    assert unled in world.run("why", "j").out
    beat = Beat(role=Role.SUPERVISOR, name="box-9", host="box", pid=9, started_at_ms=1, at_ms=1, leader=True)
    beats.publish(world.client, beat, 600)
    assert "no supervisor" not in world.run("why", "j").out


def test_why_advises_for_a_job_that_failed_with_its_parent_what_the_command_line_takes(world: World) -> None:
    world.failed("p")
    world.store.submit("c", "c", replace(SPEC, after=("p",)))
    world.finish("c", JobState.FAILED)
    assert "retry p`, then submit this one again with --after" in world.run("why", "c").out
    world.run("retry", "c", code=2)
    world.run("retry", "p")
    world.queued("q")
    world.store.submit("d", "d", replace(SPEC, after=("q",)))
    world.run("cancel", "q", "d")
    assert "waits for 'q', which was cancelled: retry that one" in world.run("retry", "d", code=2).err
    assert "q, which it was to run after, was cancelled: `trackside retry q`" in world.run("why", "d").out


def test_why_and_show_keep_why_a_pause_was_refused_after_the_job_has_moved_on(world: World) -> None:
    world.running("j")
    world.store.pause("j")
    world.store.refuse_pause("j", 1, "this script saves no checkpoints")
    assert "No pause" not in world.run("show", "j").out, "its record says it"
    world.store.cancel("j")
    assert "it cannot pause, so it runs on (this script saves no checkpoints)" in world.run("why", "j").out
    shown = world.run("show", "j").out
    assert "No pause:    refused" in shown
    assert "ago: this script saves no checkpoints" in shown


def test_show_says_after_how_many_steps_a_loop_was_left_and_how_long_its_process_ran(world: World) -> None:
    world.running("j")
    world.store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED, first_step=1, last_step=29, ran_ms=4000_000))
    world.finish("j", JobState.SUCCEEDED)
    shown = world.run("show", "j").out
    assert shown.count("left its loop after 29 of 100 steps") == 2, "at the top, and with its attempt"
    assert shown.count("1h06m") == 2, "the job's running time, and its attempt's"


def test_show_has_the_stacks_of_a_hang_after_a_later_attempt_has_succeeded(world: World) -> None:
    world.running("j")
    hung = Outcome(
        reason=Reason.STALLED, detail="no step", evidence=("the process was sleeping", "stacks:\n  train.py")
    )
    world.store.end_attempt("j", 1, hung)
    requeued = replace(world.store.job("j"), state=JobState.QUEUED)
    world.store.change("j", lambda _, __: Change(job=requeued))
    world.store.assign("j", SLOT, lambda _pipe, _job: None)
    world.store.claim("j", 2, worker_pid=5)
    world.store.end_attempt("j", 2, Outcome(reason=Reason.SUCCEEDED))
    world.finish("j", JobState.SUCCEEDED)
    assert "Evidence of attempt 1\nthe process was sleeping\nstacks:\n  train.py" in world.run("show", "j").out
    assert "`trackside logs j --attempt 1`" in world.run("why", "j").out


def test_show_has_the_newest_warning_of_an_attempt_that_runs(world: World) -> None:
    world.running("j")
    for text in ("steps have become slow", "the process is stopped by a signal (SIGSTOP)"):
        world.store.note_attempt("j", 1, EventKind.NOTE, "note", level="warning", text=text)
    shown = world.run("show", "j").out
    assert "ago: the process is stopped by a signal (SIGSTOP)" in shown
    assert "steps have become slow" not in shown
    world.store.end_attempt("j", 1, Outcome(reason=Reason.SUCCEEDED))
    assert "Warning:" not in world.run("show", "j").out


def test_ls_says_that_nobody_leads_to_whoever_has_a_job_that_waits(world: World) -> None:
    world.running("busy")
    assert "no supervisor" not in world.run("ls").err, "nothing waits"
    world.queued("j")
    assert "no supervisor is heard: nothing is given out; see `trackside ps`" in world.run("ls").err
    beat = Beat(role=Role.SUPERVISOR, name="box-9", host="box", pid=9, started_at_ms=1, at_ms=1, leader=True)
    beats.publish(world.client, beat, 600)
    assert "no supervisor" not in world.run("ls").err
