"""What a shell may do to a command: a full or closed output, a folder that is gone, Ctrl-C; one line, one code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli_world import World, start
from trackside.homelock import HomeLock
from trackside.testing import wait_until

LIMIT_S = 30.0


def shell(world: World, script: str, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `trackside ARGS` where `script` says `"$@"`."""
    command = [sys.executable, "-m", "trackside", "--home", str(world.home), *args]
    return subprocess.run(
        ["bash", "-c", script, "bash", *command], capture_output=True, text=True, timeout=LIMIT_S, cwd=cwd, check=False
    )  # fmt: skip


@pytest.mark.parametrize("where", ["> /dev/full", ">&-"])
@pytest.mark.parametrize("args", [("ls",), ("show", "queued-1"), ("ls", "--json"), ("top", "--once")])
def test_an_output_that_takes_nothing_is_one_line_and_exit_code_1(
    world: World, where: str, args: tuple[str, ...]
) -> None:
    world.queued("queued-1")
    answer = shell(world, f'"$@" {where}', *args)
    hint = ["no supervisor is heard: nothing is given out; see `trackside ps`"]  # `ls` may have said it by then
    *before, last = answer.stderr.splitlines()
    assert answer.returncode == 1
    assert before in ([], hint), answer.stderr
    assert last.startswith("trackside: the output cannot be written"), answer.stderr


def test_without_a_place_for_errors_the_exit_code_tells_and_nothing_is_printed_elsewhere(world: World) -> None:
    answer = shell(world, '"$@" 2>&-', "show", "nobody")
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", "")


def test_a_folder_that_is_gone_is_one_line_and_exit_code_2(world: World, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    answer = shell(world, 'rmdir ../gone; "$@"', "submit", "train.py", cwd=tmp_path / "gone")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
    assert "change into one that is there" in answer.stderr
    assert world.store.job_ids() == []


@pytest.mark.parametrize("args", [("cordon", "a\udcff"), ("uncordon", "a\udcff"), ("show", "a\udcff")])
def test_words_that_are_no_text_are_exit_code_2(world: World, args: tuple[str, ...]) -> None:
    answer = world.run(*args, code=2)
    assert answer.err.count("\n") == 1
    assert "give it as UTF-8" in answer.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("ls", "--limit", "0"), "--limit is '0': give a whole number from 1 on"),
        (("ls", "--state", "asleep"), "--state is 'asleep': give queued, running"),
        (("ls", "--nope"), "there is no option --nope"),
        (("ls", "extra"), "more words than it takes: extra"),
        (("why",), "JOB is missing"),
        (("wait", "--timeout"), "--timeout"),
        (("health", "nothing"), "give supervisor, trainer, dashboard or redis"),
        (("url", "--user", "root"), "--user is 'root': give operator or dashboard"),
        (("dance",), "dance"),
        (("drill", "--seed", "x"), "--seed is 'x': give a whole number"),
        (("drill", "--json", "."), "--json . cannot be written"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_says_what_to_do(world: World, args: tuple[str, ...], says: str) -> None:
    answer = world.run(*args, code=2)
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("trackside: ")
    assert says in answer.err
    assert "give" in answer.err or "-h` tells" in answer.err


def test_a_home_in_use_and_a_home_that_is_a_file_are_exit_code_2(fresh_home: Path) -> None:
    with HomeLock(fresh_home):
        process = start(fresh_home, "up", "--no-dashboard", "--slots", "cpu:1")
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2, err
    assert "stop that one first" in err

    file = fresh_home / "file"
    file.write_text("")
    for args in (("up", "--no-dashboard"), ("ls",)):
        process = start(file, *args)
        _, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, err.count("\n")) == (2, 1), err
        assert "--home" in err


def test_ctrl_c_while_a_submission_waits_says_that_the_job_goes_on(world: World, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('hi')\n")
    process = world.start("submit", str(tmp_path / "train.py"), "--id", "run-1", "--wait")
    wait_until(lambda: process.stdout is not None and process.stdout.readline(), LIMIT_S, "it told no id")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "run-1 is not stopped by this" in err.splitlines()[-1]
    assert "`trackside cancel run-1`" in err
    assert not world.store.job("run-1").state.terminal


def test_ctrl_c_while_a_submission_is_sent_says_that_it_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('hi')\n")
    with socket.create_server(("127.0.0.1", 0)) as mute:
        env = {**os.environ, "TRACKSIDE_REDIS_URL": f"redis://127.0.0.1:{mute.getsockname()[1]}"}
        command = [sys.executable, "-m", "trackside", "submit", str(tmp_path / "train.py"), "--id", "run-1"]
        process = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        mute.settimeout(LIMIT_S)
        with mute.accept()[0]:  # it is being sent, and will not be answered
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1].startswith("run-1 may be on the bus: `trackside show run-1` tells")


def test_one_file_is_sent_as_one_file(world: World, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('hi')\n")
    assert "sending 1 file of" in world.run("submit", str(tmp_path / "train.py")).err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_drill_that_is_ended_from_outside_stops_its_system_and_names_its_home(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import time\ntime.sleep(600)\n")
    env = {**os.environ, "TMPDIR": "/tmp"}  # noqa: S108 -- sockets need a short path
    command = [sys.executable, "-m", "trackside", "drill", "--faults", "F01", "--slots", "cpu:1", str(script)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Seed "), "the system runs"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=90)
    finally:
        process.kill()
    (told,) = [text for text in out.splitlines() if "home is kept: " in text]
    home = Path(told.partition("home is kept: ")[2].strip())
    try:
        assert process.returncode == 143, err
        assert home.is_dir()
        assert "Traceback" not in err
        assert not (home / "run" / "up.json").exists(), "its launcher stopped in order"
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True)
