"""`trackside up` with all that it runs, and `trackside down`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from server_harness import free_port
from system import TRAIN, running_system
from trackside import processes
from trackside.bus import beats
from trackside.bus.client import connect
from trackside.models import Beat, Reason, Role
from trackside.sdk.page import Command, ControlPage
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
TIMES = {"profile": "test", "beat_ttl_s": "1.5"}  # beats that outlast a moment without the processor


def test_one_up_a_home_whose_dashboard_comes_back_and_a_down_that_leaves_nothing(fresh_home: Path) -> None:
    port = free_port()
    with running_system(fresh_home, "--slots", "cpu:1", **TIMES, dashboard_port=str(port)) as system:
        wait_until(lambda: system.command("health", "dashboard").returncode == 0, 40, "the dashboard is not well")
        refused = system.command("up", "--slots", "cpu:1")
        assert refused.returncode == 2
        assert f"is in use by process {system.process.pid}: stop that one first" in refused.stderr
        assert refused.stderr.count("\n") == 1, refused.stderr

        def dashboard() -> int | None:
            launcher = system.beat(Role.LAUNCHER)
            return None if launcher is None else launcher.children.get("dashboard")

        first = wait_until(dashboard, 10, "the launcher does not tell its dashboard")
        assert first is not None
        system.kill(first)
        wait_until(lambda: dashboard() not in (None, first), 20, "no other dashboard")
        wait_until(lambda: system.command("health", "dashboard").returncode == 0, 40, "it does not serve its port")

        pids = [system.process.pid, *processes.descendants(system.process.pid)]
        assert len(pids) >= 6, "launcher, server, supervisor, agent, worker, dashboard"
        assert system.cli("down") == "stopped"
        assert system.process.wait(10) == 0
        assert [pid for pid in pids if processes.look(pid) is not None] == []
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
        assert system.cli("down") == "nothing runs for this home"


def test_it_is_ready_by_its_own_processes_whoever_else_beats_on_the_server(
    bus_urls: Mapping[str, str], fresh_home: Path
) -> None:
    client = connect(bus_urls["supervisor"])
    for role in (Role.SUPERVISOR, Role.AGENT, Role.WORKER):
        other = Beat(role=role, name="other-cpu0", host="other", pid=1, started_at_ms=1, at_ms=0)
        beats.publish(client, other, 120.0)
    url = bus_urls["tester"]
    with running_system(fresh_home, "--no-dashboard", "--slots", "cpu:1", **TIMES, host="box", redis_url=url):
        ours = {beat.role for beat in beats.read(client).values() if beat is not None and beat.host == "box"}
        assert {Role.SUPERVISOR, Role.AGENT, Role.WORKER} <= ours
    client.close()


def test_a_server_and_a_service_that_cannot_start_again_are_started_once_they_can(fresh_home: Path) -> None:
    with running_system(fresh_home, "--no-dashboard", "--slots", "cpu:1", **TIMES) as system:
        # It beats for the first time when it has said that all is ready.
        launcher = wait_until(lambda: system.beat(Role.LAUNCHER), 10, "the launcher does not beat")
        assert launcher is not None
        config, aside = fresh_home / "redis" / "server.conf", fresh_home / "aside"
        config.rename(aside)
        config.mkdir()  # stands for a disk that takes no file
        told = fresh_home / "logs" / "supervisor.log"
        told.unlink()
        told.mkdir()
        os.kill(launcher.children["redis"], signal.SIGKILL)
        os.kill(launcher.children["supervisor"], signal.SIGKILL)
        log = fresh_home / "up.log"
        wait_until(lambda: log.read_text().count("server_not_restarted") > 1, 20, "it is not tried again")
        wait_until(lambda: log.read_text().count("service_not_started") > 1, 20, "the supervisor is not tried again")
        config.rmdir()
        told.rmdir()
        wait_until(lambda: system.command("health", "redis").returncode == 0, 30, "the server does not come back")
        wait_until(lambda: system.command("health", "supervisor").returncode == 0, 20, "the supervisor does not")


@pytest.mark.usefixtures("hangs_up")
def test_when_its_terminal_goes_away_it_stops_in_order(fresh_home: Path) -> None:
    script = fresh_home / "train.py"
    script.write_text(TRAIN)
    with running_system(fresh_home, "--no-dashboard", "--slots", "cpu:1", **TIMES) as system:
        job_id = system.submit(script, args=("--step-ms", "2000", "--steps", "1000"))
        system.stepping(job_id, 1)
        page = ControlPage.open(fresh_home / "jobs" / job_id / "attempts" / "1" / "page")
        pids = processes.descendants(system.process.pid)
        os.kill(system.process.pid, signal.SIGHUP)
        wait_until(lambda: page.command is Command.PREEMPT, 20, "the training is not asked to stop")
        page.close()
        os.kill(system.process.pid, signal.SIGHUP)  # the shell tells of it, and then the kernel
        assert system.process.wait(30) == 0
        assert [pid for pid in pids if processes.look(pid) is not None] == []
        assert not (fresh_home / "run" / "up.json").exists()
    with running_system(fresh_home, "--no-dashboard", "--slots", "cpu:1", **TIMES) as system:
        outcome = wait_until(lambda: system.attempts(job_id)[0].outcome, 20, "its end is not told")
        assert outcome is not None
        assert outcome.reason is Reason.PREEMPTED


def test_a_server_that_could_not_be_written_down_is_found_once_it_can(fresh_home: Path) -> None:
    with running_system(fresh_home, "--no-dashboard", "--slots", "cpu:1", **TIMES) as system:
        launcher = wait_until(lambda: system.beat(Role.LAUNCHER), 10, "the launcher does not beat")
        assert launcher is not None
        state, log = fresh_home / "run" / "server.json", fresh_home / "up.log"
        state.unlink()
        state.mkdir()  # stands for a disk that takes no file
        os.kill(launcher.children["redis"], signal.SIGKILL)
        wait_until(lambda: log.read_text().count("server_not_announced") > 1, 20, "it is not tried again")
        assert log.read_text().count("server_died") == 1, "the server runs all the while"
        assert system.command("health", "redis").returncode == 1
        state.rmdir()
        wait_until(lambda: system.command("health", "redis").returncode == 0, 20, "no command finds the server")


# As `trackside up`, but that its server is a program which is told.
WITH_ANOTHER_SERVER = """
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from trackside import launcher
from trackside.config import Settings
from trackside.server import EmbeddedServer, choose_binary

launcher.EmbeddedServer = partial(EmbeddedServer, binary=replace(choose_binary(), path=Path(sys.argv[2])))
sys.exit(launcher.up(Settings(home=Path(sys.argv[1])), slots="cpu:1", dashboard=False, on_ready=print))
"""


@contextmanager
def loading(home: Path, first: str) -> Iterator[subprocess.Popen[str]]:
    """`trackside up` whose server does that first and then never answers."""
    program = home / "loading"
    program.write_text(f"#!/bin/sh\n{first}\nexec sleep 600\n")
    program.chmod(0o700)
    command = [sys.executable, "-c", WITH_ANOTHER_SERVER, str(home), str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_ctrl_c_is_heeded_while_the_server_loads(fresh_home: Path) -> None:
    with loading(fresh_home, "kill -INT $PPID") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, ""), err


def test_down_stops_what_only_starts(fresh_home: Path) -> None:
    with loading(fresh_home, ":") as process:
        wait_until((fresh_home / "redis" / "server.conf").exists, 30, "the server is not started")
        command = [sys.executable, "-m", "trackside", "--home", str(fresh_home), "down"]
        down = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (down.stdout, down.stderr) == ("stopped\n", "")
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, ""), err
    assert not (fresh_home / "run" / "up.json").exists()
