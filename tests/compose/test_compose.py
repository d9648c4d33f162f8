"""The deployment as a whole, on a real engine: `make compose-test`. Builds three images, so it takes minutes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from server_harness import free_port
from trackside.testing import wait_until

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
BUILD_LIMIT_S = 1200
UP_LIMIT_S = 240
COMMAND_LIMIT_S = 120
SERVICES = ("supervisor", "trainer", "dashboard")

TRAIN = """\
import trackside

run = trackside.init()
for step in run.steps(20):
    run.log(loss=1 / step)
print("trained")
"""

LONG = """\
import time
import torch
import trackside

run = trackside.init()
model = torch.nn.Linear(2, 2)
run.checkpointer(model=model, every=10)
for step in run.steps(120):
    time.sleep(0.1)
"""


# A server of its own beside the deployed one, in the same container, for the table of commands of this very version.
TABLE = """\
redis-server --port 6399 --bind 127.0.0.1 --save '' --appendonly no --dir /tmp >/dev/null &
trap "kill $!" EXIT
until redis-cli -p 6399 PING >/dev/null 2>&1; do sleep 0.1; done
redis-cli -p 6399 --json COMMAND
"""

# Tried with too many words and with just enough, since the server counts them before it looks at permissions. A command
# that blocks answers within the client's limit where it is refused; where it is let in, the limit is over.
TRY_ALL = """\
import json, sys
import redis

password = open("/run/secrets/dashboard").read().strip()
client = redis.Redis(host="redis", username="dashboard", password=password, socket_timeout=2.0)
client.ping()
client.get("ts:x")

def denied(words):
    try:
        client.execute_command(*words)
    except redis.exceptions.NoPermissionError:
        return True
    except (redis.exceptions.ResponseError, redis.exceptions.TimeoutError):
        return False
    return False

allowed = [
    " ".join(words) for words, least in json.loads(sys.argv[1])
    if not denied([*words, *["ts:x"] * (least + 1)]) and not denied([*words, *["ts:x"] * (least - len(words))])
]
print(json.dumps(allowed))
"""


class Deployment:
    """One compose project with passwords, a port and a working directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.name = f"trackside-test-{os.getpid()}"
        self.work = directory / "work"
        self.secrets = directory / "secrets"
        self.port = free_port()
        self._environment = dict(os.environ) | {
            "TRACKSIDE_SECRETS": str(self.secrets),
            "TRACKSIDE_WORK": str(self.work),
            "TRACKSIDE_DASHBOARD_PORT": str(self.port),
        }
        self.work.mkdir()
        (self.work / "train.py").write_text(TRAIN)
        (self.work / "long.py").write_text(LONG)
        make = [sys.executable, str(ROOT / "deploy" / "make_secrets.py"), str(self.secrets)]
        subprocess.run(make, check=True, capture_output=True, timeout=COMMAND_LIMIT_S)

    def __call__(self, *words: str, limit_s: float = COMMAND_LIMIT_S, check: bool = True) -> str:
        """Run `docker compose ...` for this project; its output."""
        command = ["docker", "compose", "--project-name", self.name, "--env-file", os.devnull, *words]
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, text=True, timeout=limit_s, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if check and done.returncode != 0:
            logs = self("logs", "--tail", "30", check=False) if words[0] != "logs" else ""
            pytest.fail(f"docker compose {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{logs}")
        return done.stdout

    def container(self, service: str) -> dict[str, Any]:
        """What the engine says about a service's container."""
        identity = self("ps", "--quiet", service).strip()
        answer = subprocess.run(
            ["docker", "inspect", identity], check=True, capture_output=True, text=True, timeout=COMMAND_LIMIT_S
        )
        found: dict[str, Any] = json.loads(answer.stdout)[0]
        return found

    def kill(self, service: str) -> None:
        """SIGKILL to the service's process: the child of the container's init."""
        kill = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
        self("exec", "-T", service, "python", "-c", kill, check=False)

    def show(self, job: str) -> dict[str, Any]:
        """The job as the command line shows it; {} while nobody answers."""
        text = self("exec", "-T", "supervisor", "trackside", "show", "--json", job, check=False)
        return json.loads(text) if text.startswith("{") else {}

    def redis(self, user: str, *words: str) -> str:
        """A command on the server as one of its users."""
        password = (self.secrets / user).read_text().strip()
        return self(
            "exec", "-T", "-e", f"REDISCLI_AUTH={password}", "redis", "redis-cli", "--user", user, *words
        ).strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The compose project, nothing started yet; everything of it is removed at the end, also its volumes."""
    if shutil.which("docker") is None:
        pytest.skip("no docker here: install Docker Engine with Compose v2")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        if subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
            pytest.skip(f"`{' '.join(command)}` fails: start the Docker engine, and install Compose v2")
    deployment = Deployment(tmp_path_factory.mktemp("compose"))
    yield deployment
    deployment("--profile", "tools", "down", "--volumes", "--timeout", "10", check=False)


@pytest.fixture(scope="module")
def running(project: Deployment) -> Deployment:
    """All services, built and healthy."""
    project("build", limit_s=BUILD_LIMIT_S)
    project("up", "--detach", "--wait", "--wait-timeout", str(UP_LIMIT_S), limit_s=UP_LIMIT_S + 60)
    return project


def test_the_files_are_valid_with_and_without_gpus(project: Deployment) -> None:
    plain = json.loads(project("--profile", "tools", "config", "--format", "json"))
    assert set(plain["services"]) == {"redis", *SERVICES, "cli", "rq-info"}
    both = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")
    with_gpus = json.loads(project(*both, "config", "--format", "json"))
    (device,) = with_gpus["services"]["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_redis_starts_closed_and_lets_each_user_do_its_own(project: Deployment) -> None:
    project("up", "--detach", "--wait", "--wait-timeout", "60", "redis")
    assert project.redis("trainer", "SET", "ts:a", "1") == "OK"
    assert project.redis("dashboard", "GET", "ts:a") == "1"
    for user, words in {
        "dashboard": ("SET", "ts:a", "2"),
        "submitter": ("SET", "rq:a", "2"),
        "operator": ("GET", "ts:a"),
        "trainer": ("EVAL", "return 1", "0"),
        "admin": ("CONFIG", "SET", "dir", "/data"),
    }.items():
        assert project.redis(user, *words).startswith("NOPERM"), (user, words)
    assert "NOAUTH" in project("exec", "-T", "redis", "redis-cli", "PING")


def test_its_data_survives_a_restart(project: Deployment) -> None:
    project("up", "--detach", "--wait", "--wait-timeout", "60", "redis")
    project.redis("trainer", "SET", "ts:kept", "yes")
    project("restart", "redis")
    project("up", "--detach", "--wait", "--wait-timeout", "60", "redis")
    assert project.redis("dashboard", "GET", "ts:kept") == "yes"
    project.redis("trainer", "DEL", "ts:kept", "ts:a")


@pytest.mark.parametrize("service", ["redis", *SERVICES])
def test_services_have_no_rights_on_the_machine(running: Deployment, service: str) -> None:
    facts = running.container(service)
    host = facts["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert [name.removeprefix("CAP_") for name in host["CapDrop"]] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert any("no-new-privileges" in option for option in host["SecurityOpt"])
    assert running("exec", "-T", service, "id", "-u").strip() != "0"
    published = {
        (binding["HostIp"], int(binding["HostPort"]))
        for bindings in host["PortBindings"].values()
        for binding in bindings
    }
    assert published == ({("127.0.0.1", running.port)} if service == "dashboard" else set())


def test_each_service_sees_its_own_password_only(running: Deployment) -> None:
    for service in SERVICES:
        seen = set(running("exec", "-T", service, "ls", "/run/secrets").split())
        assert seen == {service} | ({"operator"} if service == "trainer" else set())


def test_the_trainer_has_no_streamlit_and_the_others_no_torch(running: Deployment) -> None:
    look = "import importlib.util as u; print([n for n in ('torch', 'streamlit') if u.find_spec(n)])"
    found = {service: running("exec", "-T", service, "python", "-c", look).strip() for service in SERVICES}
    assert found == {"supervisor": "[]", "trainer": "['torch']", "dashboard": "['streamlit']"}


def test_the_dashboard_answers_on_loopback(running: Deployment) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/", timeout=10) as answer:
        assert answer.status == 200
        assert b"<html" in answer.read().lower()


def test_a_job_submitted_from_a_container_trains_to_its_end(running: Deployment) -> None:
    running("run", "--rm", "-T", "cli", "submit", "--id", "from-a-container", "train.py")
    running("run", "--rm", "-T", "cli", "wait", "--timeout", "100s", "from-a-container")
    assert "trained" in running("run", "--rm", "-T", "cli", "logs", "from-a-container")
    assert "from-a-container" in running("exec", "-T", "trainer", "trackside", "ls", "--all")


def test_the_dashboards_container_is_refused_every_command_that_writes(running: Deployment) -> None:
    table = json.loads(running("exec", "-T", "redis", "sh", "-c", TABLE))
    rows = [row for name in table for row in (name, *(name[9] if len(name) > 9 else ())) if "write" in row[2]]
    writing = [(row[0].split("|"), abs(row[1])) for row in rows]
    assert len(writing) > 80, "the server's table was not read"
    assert {"set", "blpop", "xadd"} <= {words[0] for words, _ in writing}
    assert json.loads(running("exec", "-T", "dashboard", "python", "-c", TRY_ALL, json.dumps(writing))) == []


def test_rq_info_works_as_operator(running: Deployment) -> None:
    workers = re.compile(r"\b[1-9]\d* workers, \d+ queues")
    assert workers.search(running("run", "--rm", "-T", "rq-info"))
    assert workers.search(running("exec", "-T", "trainer", "trackside", "info"))
    raw = 'RQ_REDIS_URL="redis://operator:$(cat /run/secrets/operator)@redis:6379/0" rq info'
    assert workers.search(running("exec", "-T", "trainer", "sh", "-c", raw))


def test_a_killed_trainer_resumes_its_job_from_the_checkpoint(running: Deployment) -> None:
    running("run", "--rm", "-T", "cli", "submit", "--id", "long", "long.py")
    checkpoint = wait_until(
        lambda: running.show("long").get("progress", {}).get("checkpoint_step"), 60, "no checkpoint came", every_s=0.2
    )

    running.kill("trainer")

    running("run", "--rm", "-T", "cli", "wait", "--timeout", "100s", "long")
    found = running.show("long")
    assert found["job"]["state"] == "succeeded"
    first, last = found["attempts"][0], found["attempts"][-1]
    assert last["number"] == 2, "one kill costs one attempt"
    assert last["resumed_step"] >= checkpoint > 0
    assert first["outcome"]["reason"] in ("killed", "lost")


def test_a_killed_service_comes_back_healthy(running: Deployment) -> None:
    before = running.container("supervisor")
    running.kill("supervisor")

    def back() -> bool:
        state: Mapping[str, Any] = running.container("supervisor")["State"]
        return bool(state["Pid"]) and state["Pid"] != before["State"]["Pid"] and state["Health"]["Status"] == "healthy"

    wait_until(back, 60, "the killed supervisor did not come back", every_s=0.5)


def test_everything_stops_within_its_grace(running: Deployment) -> None:
    running("stop", limit_s=60)
    statuses = {service: running_exit(running, service) for service in ("redis", *SERVICES)}
    assert set(statuses.values()) <= {0, 143}, f"137 is a SIGKILL after the grace: {statuses}"


def running_exit(deployment: Deployment, service: str) -> int:
    rows = [json.loads(line) for line in deployment("ps", "--all", "--format", "json", service).splitlines() if line]
    return int(rows[0]["ExitCode"])
