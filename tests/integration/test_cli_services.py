"""`health`, `info`, `url`, `doctor` and the service commands."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from cli_world import World, start
from trackside import upfile
from trackside.bus import beats
from trackside.bus.client import connect, service_url
from trackside.config import Settings
from trackside.errors import ServerError
from trackside.models import Beat, Role
from trackside.processes import boot, start_time
from trackside.server import EmbeddedServer, url_for
from trackside.testing import wait_until
from trackside_trainer.slots import parse


def _beat(world: World, role: Role, host: str) -> None:
    beat = Beat(role=role, name=f"{host}-1", host=host, pid=1, started_at_ms=1, at_ms=1)
    beats.publish(world.client, beat, 60)


def test_health_asks_for_a_beat_from_this_host(world: World) -> None:
    _beat(world, Role.SUPERVISOR, "elsewhere")
    assert "no beat from" in world.run("health", "supervisor", code=1).err

    _beat(world, Role.SUPERVISOR, socket.gethostname())
    assert world.run("health", "supervisor").out == "ok\n"
    world.run("health", "trainer", code=1)
    _beat(world, Role.AGENT, socket.gethostname())
    world.run("health", "trainer")
    world.run("health", "redis")
    world.run("health", "nothing", code=2)


def test_health_without_a_server_is_1(fresh_home: Path) -> None:
    process = start(fresh_home, "health", "redis")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.count("\n") == 1


@pytest.fixture
def web() -> Iterator[HTTPServer]:
    """A web server that answers as its `answer` says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = getattr(self.server, "answer")  # noqa: B009 -- set by the test
            self.send_response(status if self.path == "/_stcore/health" else 404)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_health_of_the_dashboard_is_what_it_says_itself(
    world: World, web: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKSIDE_DASHBOARD_PORT", str(web.server_address[1]))
    web.answer = (200, b"ok")  # type: ignore[attr-defined]  # read by the handler
    assert world.run("health", "dashboard").out == "ok\n"
    web.answer = (503, b"no")  # type: ignore[attr-defined]  # read by the handler
    assert "answers 503" in world.run("health", "dashboard", code=1).err
    monkeypatch.setenv("TRACKSIDE_DASHBOARD_PORT", "1")
    assert "no answer" in world.run("health", "dashboard", code=1).err


def test_health_of_the_dashboard_asks_the_port_that_up_chose(fresh_home: Path, web: HTTPServer, world: World) -> None:
    web.answer = (200, b"ok")  # type: ignore[attr-defined]  # read by the handler
    (fresh_home / "run").mkdir()
    facts = {
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "boot": boot(),
        "dashboard_url": f"http://127.0.0.1:{web.server_address[1]}",
    }
    (fresh_home / "run" / "up.json").write_text(json.dumps(facts))

    World(home=fresh_home, client=world.client, store=world.store).run("health", "dashboard")


def test_info_is_rqs_own_view_without_the_password(world: World) -> None:
    password = (world.home / "secrets" / "operator").read_text().strip()
    process = world.start("info", "--only-workers")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "workers" in out
    assert password not in out + err

    process = world.start("info", "--no-such-option")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "No such option" in out + err


def test_the_url_works_for_other_programs_and_comes_with_a_warning(world: World) -> None:
    for args in ([], ["--tcp"], ["--user", "dashboard"]):
        result = world.run("url", *args)
        assert "contains a password" in result.err
        client = connect(result.out.strip())
        assert client.ping()
        client.close()
    assert world.run("url", "--tcp").out.startswith("redis://operator:")
    assert world.run("url", "--user", "admin", code=2).out == ""

    tool = [sys.executable, "-m", "rq.cli", "info", "--url", world.run("url", "--tcp").out.strip()]
    assert subprocess.run(tool, capture_output=True, text=True, timeout=30).returncode == 0


def test_doctor_finds_what_is_there_and_what_is_silent(world: World) -> None:
    _beat(world, Role.SUPERVISOR, "box")
    checks = {check["name"]: check for check in world.run("doctor", "--json").json["checks"]}

    assert checks["server"]["status"] == "ok"
    assert any(name in checks["server"]["message"] for name in ("valkey", "redis"))
    assert checks["supervisor"]["status"] == "ok"
    assert checks["agent"]["status"] == "warn"
    assert "trackside trainer" in checks["agent"]["todo"]
    assert {"python", "redis", "rq", "home", "server program", "GPU driver"} <= set(checks)
    human = world.run("doctor").out
    assert "none beating" in human


def test_doctor_is_1_if_something_needed_is_missing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    blocked = World(home=tmp_path / "file" / "home", client=world.client, store=world.store)
    assert "cannot be written" in blocked.run("doctor", code=1).out

    monkeypatch.setenv("TRACKSIDE_REDIS_URL", "redis://:secretword@127.0.0.1:1/0")
    result = world.run("doctor", code=1)
    assert "redis://@127.0.0.1:1/0" in result.out
    assert "secretword" not in result.out + result.err


def test_a_service_that_is_not_installed_says_what_to_install(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])

    for service in ("trainer", "supervisor", "dashboard"):
        assert f'pip install "trackside[{service}]"' in world.run(service, code=1).err


def test_a_service_gets_its_own_users_connection(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Point:
        @staticmethod
        def load() -> Any:
            def main(settings: Any, *, slots: str = "none") -> int:
                seen.append((service_url(settings), settings.redis_url, slots))
                return 7

            return main

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [Point])
    world.run("trainer", "--slots", "cpu:2", code=7)
    world.run("supervisor", code=7)

    (trainer_url, trainer_setting, trainer_slots), (supervisor_url, _, supervisor_slots) = seen
    assert trainer_url == url_for(world.home, "trainer")
    assert supervisor_url == url_for(world.home, "supervisor")
    assert "//trainer@" in trainer_setting, "the password is in its file, not in the setting"
    assert (trainer_slots, supervisor_slots) == ("cpu:2", "none")


@pytest.mark.parametrize("text", ["cpu:0", "cpu:x", "tpu", "cpu:", "cpu", "cpu:300", "gpu:0"])
def test_wrong_slots_are_refused_before_anything_starts(world: World, text: str) -> None:
    for command in ("up", "trainer"):
        assert "--slots" in world.run(command, "--slots", text, code=2).err


@pytest.mark.parametrize("text", ["auto", "cpu:1", "cpu:256", "gpu", "gpu:1", "gpu:16"])
def test_what_the_trainer_takes_the_command_line_takes(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def trainer(settings: Settings, *, slots: str) -> int:
        gpus = [{"uuid": f"GPU-{at}"} for at in range(16)]
        return 10 + len(parse(slots, host="box", storage="s", find_gpus=lambda: gpus)) % 10

    point = SimpleNamespace(load=lambda: trainer)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [point])
    world.run("trainer", "--slots", text, code=10 + {"auto": 16, "gpu": 16}.get(text, int(text[4:] or 0)) % 10)


def test_down_says_if_nothing_runs(fresh_home: Path, world: World) -> None:
    idle = World(home=fresh_home, client=world.client, store=world.store)
    assert idle.run("down").out == "nothing runs for this home\n"


def test_down_does_nothing_to_whoever_has_a_dead_launchers_pid(fresh_home: Path, world: World) -> None:
    idle = World(home=fresh_home, client=world.client, store=world.store)
    (fresh_home / "run").mkdir()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        own = start_time(stranger.pid) or 0
        known = {"pid": stranger.pid, "dashboard_url": None}
        for more in ({}, {"started": own - 1}, {"started": own - 1, "boot": boot()}, {"started": own, "boot": "other"}):
            (fresh_home / "run" / "up.json").write_text(json.dumps(known | more))
            assert idle.run("down").out == "nothing runs for this home\n"
        assert stranger.poll() is None
        stranger.kill()


def test_down_finds_a_launcher_that_ends_by_itself_just_then_stopped(
    fresh_home: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh_home / "run").mkdir()
    with subprocess.Popen(["sleep", "60"]) as launcher:
        facts = {"pid": launcher.pid, "started": start_time(launcher.pid), "boot": boot(), "dashboard_url": None}
        (fresh_home / "run" / "up.json").write_text(json.dumps(facts))
        is_it, looks = upfile._is_it, []

        def look(settings: Settings, up: upfile.Up) -> bool:
            looks.append(up.pid)
            found = is_it(settings, up)
            if len(looks) == 2:  # the last look before it is told to stop
                launcher.kill()
                launcher.wait()
            return found

        monkeypatch.setattr(upfile, "_is_it", look)
        assert World(home=fresh_home, client=world.client, store=world.store).run("down").out == "stopped\n"


@pytest.mark.parametrize("known", [(), ("started",), ("boot",)], ids=["pid", "pid-started", "pid-boot"])
def test_a_launcher_that_an_earlier_version_started_is_seen_and_stopped(
    fresh_home: Path, world: World, known: tuple[str, ...]
) -> None:
    story = (
        "import sys, time; from pathlib import Path; from trackside.homelock import HomeLock\n"
        "lock = HomeLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", story, str(fresh_home)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdout is not None
        assert old.stdout.readline() == "held\n"
        facts = {"pid": old.pid, "dashboard_url": None, "server": "redis"}
        both = {"started": start_time(old.pid), "boot": boot()}
        (fresh_home / "run").mkdir()
        (fresh_home / "run" / "up.json").write_text(json.dumps(facts | {name: both[name] for name in known}))
        try:
            assert World(home=fresh_home, client=world.client, store=world.store).run("down").out == "stopped\n"
            assert old.wait() == -signal.SIGTERM
        finally:
            old.kill()


def test_a_server_that_an_earlier_version_started_is_found(own_server: EmbeddedServer) -> None:
    path = own_server.home / "run" / "server.json"
    state = json.loads(path.read_text())
    for unknown in (("boot",), ("started", "boot")):
        path.write_text(json.dumps({name: value for name, value in state.items() if name not in unknown}))
        with connect(url_for(own_server.home, "operator")) as client:
            assert client.ping()
    path.write_text(json.dumps(state))


def test_a_dead_servers_pid_in_other_hands_is_no_server(own_server: EmbeddedServer) -> None:
    path = own_server.home / "run" / "server.json"
    state = json.loads(path.read_text())
    own_server.stop()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        for now in ({"pid": stranger.pid}, {"pid": stranger.pid, "started": start_time(stranger.pid), "boot": "x"}):
            path.write_text(json.dumps(state | now))
            with pytest.raises(ServerError, match="no server runs"):
                url_for(own_server.home, "operator")
        stranger.kill()


class Top:
    """`trackside top` at a terminal of its own."""

    def __init__(self, home: Path) -> None:
        self.terminal, other_end = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self._drawn = bytearray()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trackside", "--home", str(home), "top"],
            env={**os.environ, "COLUMNS": "100", "LINES": "30", "TERM": "xterm"},
            stdin=other_end, stdout=other_end, stderr=other_end, start_new_session=True,
        )  # fmt: skip
        os.close(other_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)

    def shows(self, text: bytes) -> bool:
        """Whether that was drawn since the start."""
        with suppress(OSError):  # Linux's way to say that the other end is closed
            while select.select([self.terminal], [], [], 0)[0]:
                self._drawn.extend(os.read(self.terminal, 65536))
        return text in self._drawn


def test_top_goes_on_until_q_and_says_since_when_it_is_stale(own_server: EmbeddedServer) -> None:
    world = World.at(own_server.home, {"supervisor": own_server.url("supervisor")})
    world.running("digits-abc123")
    with Top(world.home) as top:
        wait_until(lambda: top.shows(b"digits-abc123"), 20, "no frame was drawn")
        own_server.stop()
        wait_until(lambda: top.shows(b"STALE"), 20, "a dead server was not told")
        os.write(top.terminal, b"q")
        assert top.process.wait(20) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_top_gives_the_terminal_back_when_it_is_ended_from_outside(
    world: World, number: signal.Signals, code: int
) -> None:
    world.running("digits-abc123")
    with Top(world.home) as top:
        wait_until(lambda: top.shows(b"digits-abc123"), 20, "no frame was drawn")
        assert termios.tcgetattr(top.terminal) != top.before
        top.process.send_signal(number)
        wait_until(lambda: top.shows(b"\x1b[?1049l"), 20, "the screen was not given back")
        assert top.process.wait(20) == code
        assert termios.tcgetattr(top.terminal) == top.before
