"""`logs`, `events`, `wait`, `cancel`, `pause`, `resume`: commands that go on, wake up, and change states."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping

import orjson
import pytest

from cli_world import HOSTILE_NAME, World, terminal_output
from server_harness import reads
from trackside.bus import keys, streams
from trackside.bus.client import connect
from trackside.models import JobState
from trackside.server import EmbeddedServer
from trackside.testing import wait_until

LIMIT_S = 20


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _second_attempt(world: World, job_id: str) -> None:
    with world.client.pipeline() as pipe:
        streams.open_attempt(pipe, job_id, 2)
        pipe.execute()
    streams.ship_output(world.client, job_id, 2, 7, b"again\n")


def test_logs_reach_a_pipe_byte_for_byte(world: World) -> None:
    world.running("digits-abc123")
    streams.ship_output(world.client, "digits-abc123", 1, 30, b"no newline")

    assert world.run("logs", "digits").out == "hello \x1b[31mred\x1b[0m\nline 2\nno newline"


def test_logs_on_a_terminal_are_harmless_and_tell_the_attempts_apart(world: World) -> None:
    world.running("digits-abc123")
    streams.ship_output(world.client, "digits-abc123", 1, 30, "half \u00e9".encode()[:-1])
    streams.ship_output(world.client, "digits-abc123", 1, 40, "\u00e9".encode()[-1:] + b" \x1b]0;owned\x07\rover\n")
    _second_attempt(world, "digits-abc123")

    out = terminal_output(world, "logs", "digits")

    assert out == "hello red\nline 2\nhalf \u00e9 \nover\n--- attempt 2 ---\nagain\n"


def test_json_on_a_terminal_is_the_same_document_without_control_characters(world: World) -> None:
    world.queued("evil-1", HOSTILE_NAME)

    out = terminal_output(world, "ls", "--json")

    assert not set(out) & {"\x1b", "\x07", "\u202e", "\x9b"}
    assert orjson.loads(out)["jobs"][0]["name"] == HOSTILE_NAME


def test_logs_of_one_attempt_and_the_last_lines(world: World) -> None:
    world.running("digits-abc123")
    _second_attempt(world, "digits-abc123")

    assert world.run("logs", "digits").out.endswith("line 2\nagain\n")
    assert world.run("logs", "digits", "--attempt", "1").out.endswith("line 2\n")
    assert world.run("logs", "digits", "--tail", "2").out == "line 2\nagain\n"
    assert world.run("logs", "digits", "--tail", "0").out == ""
    assert "1 attempt:" in world.run("logs", "digits", "--attempt", "9", code=2).err


def test_a_bar_that_draws_itself_anew_counts_as_one_of_the_last_lines(world: World) -> None:
    world.running("digits-abc123")
    bar = b"".join(b"\rEpoch 1: %3d%%" % part for part in range(101))
    streams.ship_output(world.client, "digits-abc123", 1, 2000, bar + b"\nepoch done\n")

    out = world.start("logs", "digits", "--tail", "3").communicate(timeout=LIMIT_S)[0]
    assert out.splitlines()[0] == "line 2"  # read as text, where each part is a line
    assert len(out.splitlines()) == 104


def test_on_a_terminal_nothing_of_an_attempt_runs_into_the_next(world: World) -> None:
    world.running("digits-abc123")
    streams.ship_output(world.client, "digits-abc123", 1, 30, "died at \u00e9".encode()[:-1])
    _second_attempt(world, "digits-abc123")

    out = terminal_output(world, "logs", "digits")

    assert out == "hello red\nline 2\ndied at \ufffd\n--- attempt 2 ---\nagain\n"


def test_following_ends_when_the_job_has_ended_and_all_is_printed(world: World) -> None:
    world.running("digits-abc123")
    process = world.start("logs", "-f", "digits")
    assert _line(process) == "hello \x1b[31mred\x1b[0m\n"
    assert _line(process) == "line 2\n"

    streams.ship_output(world.client, "digits-abc123", 1, 40, b"more\n")
    assert _line(process) == "more\n", "it is printed while the job still runs"
    streams.ship_output(world.client, "digits-abc123", 1, 50, b"last words\n")
    world.finish("digits-abc123", JobState.SUCCEEDED)

    assert _finish(process) == (0, "last words\n", "")


def test_following_a_silent_attempt_asks_twice_a_second_at_most(world: World, bus_urls: Mapping[str, str]) -> None:
    world.queued("quiet-1")
    with world.client.pipeline() as pipe:
        streams.open_attempt(pipe, "quiet-1", 1)
        pipe.execute()
    process = world.start("logs", "-f", "quiet-1")
    tester = connect(bus_urls["tester"])
    before = reads(tester)
    wait_until(lambda: reads(tester) > before, LIMIT_S, "it never read")
    began_s, first = time.monotonic(), reads(tester)
    wait_until(lambda: reads(tester) >= first + 4, LIMIT_S, "it stopped reading")
    assert time.monotonic() - began_s > 1.0, "an entry without text woke it again and again"
    world.store.cancel("quiet-1")
    tester.close()

    assert _finish(process) == (0, "", "")


def test_following_outlasts_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    world = World.at(own_server.home, {"supervisor": own_server.url("supervisor")})
    world.running("digits-abc123")
    process = world.start("logs", "-f", "digits")
    assert _line(process).startswith("hello")
    assert _line(process) == "line 2\n"

    own_server.stop()
    assert process.stderr is not None
    assert "trying again" in process.stderr.readline()
    own_server.start().wait_ready()
    streams.ship_output(world.client, "digits-abc123", 1, 40, b"after\n")
    assert _line(process) == "after\n"
    world.finish("digits-abc123", JobState.SUCCEEDED)

    assert _finish(process)[:2] == (0, "")


def test_following_one_attempt_ends_with_it(world: World) -> None:
    world.failed("broken-111111")

    assert _finish(world.start("logs", "-f", "--attempt", "1", "broken"))[0] == 0


def test_following_events_tells_each_once_and_ends_with_the_job(world: World) -> None:
    world.queued("alpha-1")
    process = world.start("events", "-f", "--json", "alpha-1")
    assert '"submitted"' in _line(process)

    world.queued("beta-1")
    world.store.pause("alpha-1")
    assert '"paused"' in _line(process)
    world.store.cancel("alpha-1")

    code, out, err = _finish(process)
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert '"new":"cancelled"' in line


def test_wait_is_0_only_if_all_succeeded(world: World) -> None:
    world.running("good-1", "good")
    world.finish("good-1", JobState.SUCCEEDED)
    world.failed("bad-1")
    world.queued("open-1")

    world.run("wait", "good-1", code=0)
    world.run("wait", "good-1", "bad-1", code=1)
    assert "not all jobs have ended" in world.run("wait", "good-1", "open-1", "--timeout", "0.05", code=124).err
    world.run("wait", "open-1", "--timeout", "never", code=2)
    world.run("wait", "nobody", code=2)
    assert world.run("wait", "bad-1", "--json", code=1).json["jobs"][0]["reason"] == "user_error"


def test_wait_wakes_up_when_the_job_ends(world: World) -> None:
    world.running("digits-abc123")
    process = world.start("wait", "digits-abc123")
    assert process.stderr is not None
    assert process.stderr.readline() == "digits-abc123: running\n"

    world.finish("digits-abc123", JobState.SUCCEEDED, "all steps done")

    assert _finish(process) == (0, "", "digits-abc123: succeeded (all steps done)\n")


def test_wait_does_not_wait_for_a_job_that_is_gone(world: World) -> None:
    world.queued("alpha-1")
    process = world.start("wait", "alpha-1")
    assert process.stderr is not None
    assert process.stderr.readline() == "alpha-1: queued (waits for a free slot)\n"

    world.client.delete(keys.job("alpha-1"))

    assert _finish(process) == (1, "", "trackside: job alpha-1 is no longer on the bus\n")


def test_wait_outlasts_a_restart_of_the_server(own_server: EmbeddedServer) -> None:
    urls = {"supervisor": own_server.url("supervisor")}
    world = World.at(own_server.home, urls)
    world.running("digits-abc123")
    process = world.start("wait", "digits-abc123")
    assert process.stderr is not None
    assert process.stderr.readline() == "digits-abc123: running\n"

    own_server.stop()
    assert "no answer from the server" in process.stderr.readline()
    own_server.start().wait_ready()
    wait_until(world.client.ping, 5, "the server did not come back")
    world.finish("digits-abc123", JobState.SUCCEEDED)

    assert _finish(process)[0] == 0


@pytest.mark.parametrize("command", [["logs", "-f", "digits"], ["wait", "digits"], ["events", "-f"]])
def test_ctrl_c_is_130_without_a_traceback(world: World, command: list[str]) -> None:
    world.running("digits-abc123")
    process = world.start(*command)
    stream = process.stderr if command[0] == "wait" else process.stdout
    assert stream is not None
    assert stream.readline() != ""

    process.send_signal(signal.SIGINT)

    code, _, err = _finish(process)
    assert code == 130
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(world: World) -> None:
    world.running("digits-abc123")
    for number in range(200):
        streams.ship_output(world.client, "digits-abc123", 1, 1000 + number, b"x" * 2000 + b"\n")
    process = world.start("logs", "digits")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None

    _, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (141, "")


def test_cancel_pause_and_resume_change_the_state(world: World) -> None:
    world.queued("alpha-1")
    world.running("digits-abc123")

    assert world.run("pause", "alpha-1").out.startswith("alpha-1 paused")
    assert world.run("resume", "alpha-1").out.startswith("alpha-1 queued")
    assert world.run("cancel", "alpha-1", "digits").out.splitlines() == [
        "alpha-1 cancelled (cancelled before it ran)",
        "digits-abc123 cancelling (stops at the next step)",
    ]
    assert world.run("cancel", "alpha-1", "--json").json["jobs"][0]["state"] == "cancelled", "again does no harm"


def test_all_is_cancelled_that_can_be_and_what_is_not_there_is_told_at_the_end(world: World) -> None:
    world.queued("alpha-1")
    world.queued("beta-1")

    answer = world.run("cancel", "alpha-1", "nobody", "beta-1", code=2)
    assert [told.split()[:2] for told in answer.out.splitlines()] == [["alpha-1", "cancelled"], ["beta-1", "cancelled"]]
    assert answer.err.startswith("trackside: no job 'nobody'")
    assert [world.store.job(job_id).state for job_id in ("alpha-1", "beta-1")] == [JobState.CANCELLED] * 2


def test_cancelling_what_has_ended_is_told_and_no_error_and_the_others_are_cancelled(world: World) -> None:
    world.running("good-1", "good")
    world.finish("good-1", JobState.SUCCEEDED)
    world.failed("bad-1")
    world.queued("alpha-1")
    world.queued("beta-1")

    assert world.run("cancel", "alpha-1", "good-1", "bad-1", "beta-1").out.splitlines() == [
        "alpha-1 cancelled (cancelled before it ran)",
        "good-1 is succeeded already: nothing to cancel",
        "bad-1 is failed already: nothing to cancel",
        "beta-1 cancelled (cancelled before it ran)",
    ]
    assert world.run("cancel", "alpha-1").out == "alpha-1 is cancelled already: nothing to cancel\n"
    assert [job["state"] for job in world.run("cancel", "good-1", "--json").json["jobs"]] == ["succeeded"]
    assert world.store.job("good-1").state is JobState.SUCCEEDED


def test_what_the_state_does_not_allow_is_exit_code_2_and_says_what_to_do(world: World) -> None:
    world.running("good-1", "good")
    world.finish("good-1", JobState.SUCCEEDED)
    world.failed("bad-1")
    world.running("going-1")
    world.store.cancel("going-1")

    said = {
        ("pause", "good-1"): "cannot be paused: its work is done, and `trackside submit` does it again",
        ("resume", "good-1"): "cannot be resumed: its work is done, and `trackside submit` does it again",
        ("pause", "bad-1"): "cannot be paused: `trackside retry bad-1` does it again",
        ("resume", "bad-1"): "cannot be resumed: `trackside retry bad-1` does it again",
        ("pause", "going-1"): "cannot be paused: wait for its end, then `trackside retry going-1` does it again",
    }
    for (command, job_id), words in said.items():
        state = world.store.job(job_id).state
        assert world.run(command, job_id, code=2).err == f"trackside: job {job_id!r} is {state} and {words}\n"
        assert world.store.job(job_id).state is state


def test_the_person_who_asked_is_in_the_history(world: World) -> None:
    world.queued("alpha-1")
    world.run("cancel", "alpha-1")

    assert world.run("events", "alpha-1", "--json").json["events"][-1]["by"].startswith("cli:")
