"""The embedded server, for real: hardened, persistent, one to a home."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from server_harness import plain_client
from trackside.bus.acl import USERS
from trackside.errors import AlreadyRunning, ServerError
from trackside.server import EmbeddedServer, HomeLock, ServerBinary, url_for
from trackside.testing import wait_until


def test_data_survives_a_stop_and_a_start(own_server: EmbeddedServer) -> None:
    with plain_client(own_server.url("trainer")) as client:
        client.set("ts:kept", "yes")
    port = own_server.port
    own_server.stop()

    with own_server, plain_client(own_server.url("trainer", tcp=True)) as client:
        assert client.get("ts:kept") == b"yes"
        assert own_server.port == port, "a URL in somebody's notes must stay good"


def test_acknowledged_writes_survive_sigkill_of_the_server(own_server: EmbeddedServer) -> None:
    with plain_client(own_server.url("trainer")) as client:
        client.rpush("ts:list", *range(1000))
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGKILL)
    wait_until(lambda: own_server.poll() is not None, 5, "the killed server did not end")
    own_server.stop()

    with own_server, plain_client(own_server.url("trainer")) as client:
        assert client.llen("ts:list") == 1000


def test_everything_in_the_home_is_private_and_passwords_are_kept(own_server: EmbeddedServer) -> None:
    home = own_server.home
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
    passwords = {user: (home / "secrets" / user).read_text().strip() for user in USERS}
    assert len(set(passwords.values())) == len(USERS)
    assert min(map(len, passwords.values())) >= 43, "32 bytes are 43 letters in base64"
    configuration = own_server.config_path.read_text()
    assert not any(password in configuration for password in passwords.values())

    own_server.stop()
    with own_server:
        assert passwords == {user: (home / "secrets" / user).read_text().strip() for user in USERS}


def test_another_process_finds_the_server_by_its_home(own_server: EmbeddedServer) -> None:
    for tcp in (False, True):
        with plain_client(url_for(own_server.home, "dashboard", tcp=tcp)) as client:
            assert client.execute_command("PING")
    own_server.stop()
    with pytest.raises(ServerError, match="trackside up"):
        url_for(own_server.home, "dashboard")


def test_a_home_that_was_never_started_says_how_to_start_it(fresh_home: Path) -> None:
    with pytest.raises(ServerError, match="trackside up"):
        url_for(fresh_home, "submitter")


def test_a_home_that_cannot_be_made_is_named(server_binary: ServerBinary, fresh_home: Path) -> None:
    (fresh_home / "file").write_text("no directory")
    with pytest.raises(ServerError, match=r"file/home.*TRACKSIDE_HOME"):
        EmbeddedServer(fresh_home / "file" / "home", binary=server_binary).start()


def test_a_long_home_gets_its_socket_in_a_private_temporary_directory(
    server_binary: ServerBinary, fresh_home: Path
) -> None:
    home = fresh_home / ("long-" * 30)
    with EmbeddedServer(home, binary=server_binary) as server, plain_client(url_for(home, "trainer")) as client:
        assert client.set("ts:a", "1")
        assert not server.socket_path.is_relative_to(home)
        assert stat.S_IMODE(server.socket_path.parent.stat().st_mode) == 0o700
    server.socket_path.parent.rmdir()


def test_a_home_with_spaces_and_quotes_works(server_binary: ServerBinary, fresh_home: Path) -> None:
    home = fresh_home / 'my "own" home %41'
    with EmbeddedServer(home, binary=server_binary), plain_client(url_for(home, "trainer")) as client:
        assert client.set("ts:a", "1")


def test_the_data_never_has_two_servers(
    own_server: EmbeddedServer, server_binary: ServerBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackside.server._LEFTOVER_S", 0.1)
    with pytest.raises(AlreadyRunning) as caught:
        EmbeddedServer(own_server.home, binary=server_binary).start()
    assert caught.value.pid == own_server.pid
    with plain_client(own_server.url("trainer")) as client:
        assert client.set("ts:a", "1"), "the first server was disturbed"


def test_a_taken_port_is_left_to_its_owner(own_server: EmbeddedServer, server_binary: ServerBinary) -> None:
    own_server.stop()
    assert own_server.port is not None
    with socket.socket() as other:
        other.bind(("127.0.0.1", own_server.port))
        other.listen()
        with EmbeddedServer(own_server.home, binary=server_binary) as server:
            assert server.port != own_server.port


def test_a_wanted_port_that_is_taken_is_named(server_binary: ServerBinary, fresh_home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} .* is taken"):
            EmbeddedServer(fresh_home, binary=server_binary, port=port).start().wait_ready()


def test_a_damaged_file_is_named_and_the_printed_command_repairs_it(own_server: EmbeddedServer) -> None:
    with plain_client(own_server.url("trainer")) as client:
        client.set("ts:first", "kept")
        client.rpush("ts:list", *range(1000))
        client.set("ts:last", "lost")
    own_server.stop()
    file = max((own_server.home / "redis").rglob("*aof"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes().replace(b"*1002\r\n", b"!damage"))

    with pytest.raises(ServerError, match=re.escape(str(file))) as caught:
        own_server.start().wait_ready()

    command = re.search(r"with: (bash .*?--fix '.*?'\")", caught.value.message)
    assert command is not None, caught.value.message
    repaired = subprocess.run(command[1], shell=True, input="y\n", text=True, capture_output=True)  # noqa: S602 -- as a person would
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    with own_server, plain_client(own_server.url("trainer")) as client:
        assert client.get("ts:first") == b"kept"


def test_a_file_beyond_repair_says_how_to_start_empty(own_server: EmbeddedServer) -> None:
    manifests = list((own_server.home / "redis").rglob("*.manifest"))
    if not manifests:
        pytest.skip("servers before 7.0 have no manifest")
    own_server.stop()
    manifests[0].write_text("damage\n")
    with pytest.raises(ServerError, match=r"cannot be repaired.*start empty"):
        own_server.start().wait_ready()


def test_data_that_this_server_cannot_read_is_refused_untouched(own_server: EmbeddedServer) -> None:
    own_server.stop()
    state_path = own_server.home / "run" / "server.json"
    state = json.loads(state_path.read_text())
    state_path.write_text(json.dumps(state | {"version": "99.1.0"}))
    with pytest.raises(ServerError, match=r"which \w+ 99\.1\.0 wrote: install that one again"):
        own_server.start()

    state_path.write_text(json.dumps(state))
    own_server.start().wait_ready()


def test_the_server_ends_with_the_process_that_started_it(server_binary: ServerBinary, fresh_home: Path) -> None:
    story = (
        "import sys, time; from pathlib import Path; from trackside.server import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1])).start().wait_ready(); print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", story, str(fresh_home)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with plain_client(url_for(fresh_home, "trainer")) as client:
            client.set("ts:a", "1")
        parent.kill()

    # A new one waits for the old one to be gone, and loads what it wrote.
    with EmbeddedServer(fresh_home, binary=server_binary) as server, plain_client(server.url("trainer")) as client:
        assert client.get("ts:a") == b"1"
        assert server.pid != pid
        wait_until(lambda: not Path(f"/proc/{pid}/exe").exists(), 5, "the orphaned server is still there")


def test_rq_info_works_over_tcp_as_operator(redis_server: EmbeddedServer, bus_urls: dict[str, str]) -> None:
    with plain_client(bus_urls["trainer"]) as client:  # what an ended worker, an old result and a waiting job look like
        client.sadd("rq:queues", "rq:queue:gpu")
        client.rpush("rq:queue:gpu", "a-job:1")
        client.sadd("rq:workers", "rq:worker:gone")
        client.sadd("rq:workers:gpu", "rq:worker:gone")
        client.zadd("rq:finished:gpu", {"old-job:1": 1})
        client.zadd("rq:failed:gpu", {"bad-job:1": 1})

    answer = subprocess.run(
        [Path(sys.executable).parent / "rq", "info", "--url", redis_server.url("operator", tcp=True)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert answer.returncode == 0, answer.stderr
    assert re.search(r"gpu .*1, 0 executing", answer.stdout), answer.stdout


def test_a_second_launcher_is_refused_with_the_pid_of_the_first(fresh_home: Path) -> None:
    story = (
        "import sys, time; from pathlib import Path; from trackside.server import HomeLock\n"
        "lock = HomeLock(Path(sys.argv[1])).acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", story, str(fresh_home)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match=rf"process {first.pid}\b.*TRACKSIDE_HOME") as caught:
            HomeLock(fresh_home).acquire()
        assert caught.value.pid == first.pid
        first.kill()

    with HomeLock(fresh_home) as lock:  # the killed one's file is still there, its lock is not
        assert lock.path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(AlreadyRunning):
            HomeLock(fresh_home).acquire()
    with HomeLock(fresh_home):
        pass


def test_the_state_file_says_what_runs(own_server: EmbeddedServer) -> None:
    state = json.loads((own_server.home / "run" / "server.json").read_text())
    assert state["pid"] == own_server.pid
    assert state["flavour"] in ("redis", "valkey")
    assert state["port"] == own_server.port
    own_server.stop()
    assert json.loads((own_server.home / "run" / "server.json").read_text())["pid"] is None


def listens(at: Path) -> bool:
    """Whether a server takes connections there: the file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(at)) == 0


def test_the_deployments_configuration_and_users_start_a_server(server_binary: ServerBinary, fresh_home: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    secrets, data, at = fresh_home / "secrets", fresh_home / "data", fresh_home / "sock"
    data.mkdir()
    version = f"{server_binary.flavour} {server_binary.version}"
    make = [sys.executable, str(root / "deploy" / "make_secrets.py"), str(secrets), "--server", version]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    configuration = (root / "deploy" / "redis.conf").read_text()
    for theirs, ours in {"dir /data": f"dir {data}", "/run/secrets": str(secrets), "port 6379": "port 0"}.items():
        assert theirs in configuration
        configuration = configuration.replace(theirs, ours)
    (fresh_home / "redis.conf").write_text(configuration + f"unixsocket {at}\n")
    command = [str(server_binary.path), str(fresh_home / "redis.conf")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            password = (secrets / "trainer").read_text().strip()
            url = f"unix://trainer:{password}@{at}"
            wait_until(lambda: listens(at), 10, "the server did not start")
            with plain_client(url) as client:
                assert client.set("ts:a", "1")
                for words in (
                    ("EVAL", "return 1", "0"),
                    ("CONFIG", "GET", "dir"),
                    ("FLUSHALL",),
                    ("MODULE", "LIST"),
                ):
                    with pytest.raises(redis.exceptions.NoPermissionError):
                        client.execute_command(*words)
            with plain_client(f"unix://{at}") as anonymous, pytest.raises(redis.AuthenticationError):
                anonymous.ping()
        finally:
            server.terminate()
