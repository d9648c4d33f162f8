"""Faults of the network between the services and their server: a proxy in between makes the weather."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from chaos.conftest import SEED, SETTINGS, also
from chaos.proxy import Proxy
from chaos.rqinfo import watched
from chaos.standstill import Blind
from trackside.bus.client import without_password
from trackside.cli.faults import Fault, kill_training
from trackside.cli.rehearse import Baseline, Result, baseline, healed, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway, now_ms, throwaway
from trackside.models import Reason, Role
from trackside.server import EmbeddedServer, ServerBinary
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
# The product's own: five tries of a beat, or two renewals of the lease, fit in it on a line of 200 ms +- 100 ms.
LIMITS: Final = {**SETTINGS, "beat_ttl_s": "4", "lease_ttl_s": "3", "stall_limit_s": "60", "stall_floor_s": "60"}
_KILLED: Final = frozenset({Reason.KILLED})
_LOST: Final = frozenset({Reason.LOST, Reason.FENCED})


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A system whose every service goes through the proxy, watched from beside it."""

    system: Throwaway
    proxy: Proxy
    server: EmbeddedServer
    undisturbed: Baseline


@pytest.fixture(scope="module")
def network(server_binary: ServerBinary, script: Path) -> Iterator[Network]:
    home = Path(tempfile.mkdtemp(prefix="ts-"))
    with EmbeddedServer(home / "server", binary=server_binary) as server, Proxy(server.socket_path, SEED) as proxy:
        password = home / "server" / "secrets" / "supervisor"
        url = f"redis://supervisor@127.0.0.1:{proxy.port}/0"
        settings = {**LIMITS, "redis_url": url, "redis_password_file": str(password)}
        with (
            watched(lambda: server.url("operator", tcp=True)),
            throwaway(home / "home", slots="cpu:2", settings=settings, url=server.url("supervisor")) as system,
        ):
            base = baseline(system, lambda: system.submit(script))
            yield Network(system=system, proxy=proxy, server=server, undisturbed=base)
    shutil.rmtree(home, ignore_errors=True)


def lost_replies(network: Network, scene: Scene) -> Harm:
    """Twenty commands are done and nobody is told, one after the other."""
    harm = Harm(at_ms=now_ms())
    for _ in range(20):
        cut = network.proxy.resets
        network.proxy.drop_replies(1)
        wait_until(lambda cut=cut: network.proxy.resets > cut, 10.0, "no reply came that could be lost")  # type: ignore[misc]  # mypy cannot see the default's type
    return harm


def lost_replies_and_a_death(network: Network, scene: Scene) -> Harm:
    harm = kill_training(scene)
    lost_replies(network, scene)
    return harm


def resets(network: Network, scene: Scene, share: float) -> Harm:
    """Connections break in the middle of what they carry, until the run's end."""
    scene.stack.callback(network.proxy.clear)
    network.proxy.change(reset_share=share)
    return kill_training(scene)


def bad_line(network: Network, scene: Scene, delay_s: float, jitter_s: float, reset_share: float) -> Harm:
    """A slow, thin line that breaks now and then, until the run's end; the delay is that of each direction."""
    scene.stack.callback(network.proxy.clear)
    harm = Harm(at_ms=now_ms())
    network.proxy.change(delay_s=delay_s, jitter_s=jitter_s, bytes_per_s=64_000.0, reset_share=reset_share)
    return harm


def partition(network: Network, scene: Scene, **weather: Any) -> Harm:
    """Nothing gets through for longer than every limit, for supervisor and trainer alike: blind is not dead."""
    scene.stack.callback(network.proxy.clear)
    harm = Harm(at_ms=now_ms())
    network.proxy.change(**weather)
    time.sleep(2 * network.system.settings.beat_ttl_s)
    network.proxy.clear()
    return harm


def partition_of_the_host(network: Network, scene: Scene) -> Harm:
    """The trainer is cut off while a supervisor goes on seeing: the attempt is overtaken and may write nothing."""
    system = network.system
    env = {name: value for name, value in system.env.items() if name != "TRACKSIDE_REDIS_PASSWORD_FILE"}
    url = network.server.url("supervisor")
    env["TRACKSIDE_REDIS_URL"] = without_password(url)
    env["TRACKSIDE_REDIS_PASSWORD_FILE"] = str(network.server.home / "secrets" / "supervisor")
    log = scene.stack.enter_context((system.home / "logs" / "supervisor-direct.log").open("ab"))
    before = {beat.pid for beat in system.beats(Role.SUPERVISOR)}
    command = [sys.executable, "-m", "trackside", "--home", str(system.home / "beside"), "supervisor"]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    scene.stack.callback(process.wait, 20)
    scene.stack.callback(process.terminate)
    wait_until(lambda: {b.pid for b in system.beats(Role.SUPERVISOR)} - before, 30.0, "no second supervisor")
    scene.stack.callback(network.proxy.clear)
    number = system.job(scene.job).attempt
    harm = Harm(at_ms=now_ms())
    network.proxy.change(swallow_requests=True, swallow_replies=True)
    wait_until(lambda: system.job(scene.job).slot is None, 60.0, "nobody noticed that the host fell silent")
    assert system.store.attempt(scene.job, number).outcome is not None
    network.proxy.clear()
    return harm


FAULTS: Final[tuple[tuple[str, str, Callable[[Network, Scene], Harm], dict[str, Any]], ...]] = (
    ("F28", "twenty replies lost", lost_replies, {"attempts_max": 1, "bystander": True}),
    ("F28a", "replies lost around a death", lost_replies_and_a_death, {"reasons": (_KILLED,)}),
    (
        "F29", "connections reset now and then",
        lambda network, scene: resets(network, scene, 0.01),
        {"reasons": (_KILLED,)},
    ),
    (
        "F29a", "one in twenty packets resets",
        lambda network, scene: resets(network, scene, 0.05),
        {"reasons": (_KILLED,)},
    ),
    (
        "F31", "everything cut off from the server",
        lambda network, scene: partition(network, scene, swallow_requests=True, swallow_replies=True),
        {"attempts_max": 1, "bystander": True},
    ),
    (
        "F32", "answers do not arrive",
        lambda network, scene: partition(network, scene, swallow_replies=True),
        {"attempts_max": 1, "bystander": True},
    ),
    (
        "F32b", "requests do not arrive",
        lambda network, scene: partition(network, scene, swallow_requests=True),
        {"attempts_max": 1, "bystander": True},
    ),
    ("F31a", "trainer cut off, supervisor sees", partition_of_the_host, {"attempts_max": 3, "reasons": (_LOST,)}),
    (
        "F33", "200 ms +- 100 ms, 5 % resets, 64 kB/s",
        lambda network, scene: bad_line(network, scene, 0.1, 0.2, 0.05),
        {"attempts_max": 1},
    ),
    (
        "F33a", "slow, thin, breaking line",
        lambda network, scene: bad_line(network, scene, 0.01, 0.02, 0.005),
        {"attempts_max": 1, "bystander": True},
    ),
)  # fmt: skip


# Steps slow enough to outlast the fault: it must still be training when a second supervisor has come up, or when the
# server is in reach again.
SLOW: Final = {"F31a": "40", "F31": "60", "F32": "60", "F32b": "60"}
BLIND: Final = ("F31", "F32", "F32b")
IN_CI: Final = ("F28",)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each[0], marks=() if each[0] in IN_CI else pytest.mark.chaos) for each in FAULTS],
)
def test_every_promise_is_held_when(
    fault: tuple[str, str, Callable[[Network, Scene], Harm], dict[str, Any]],
    network: Network,
    script: Path,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    id_, name, harm, facts = fault
    blind = Blind(inject=lambda scene: harm(network, scene))
    inject = blind if id_ in BLIND else blind.inject
    each = Fault(id=id_, name=name, inject=inject, **facts)
    healed(network.system)
    argv = ("--step-ms", SLOW[id_]) if id_ in SLOW else ()
    result = rehearse(network.system, each, lambda: network.system.submit(script, *argv), network.undisturbed, rng)
    for line in blind.figures:
        figure(f"{id_}: {line}")
    judged(also(result, *blind.broken))


def test_the_proxy_itself_loses_what_it_is_told_to(network: Network) -> None:
    """Without this the tests above could pass in fair weather."""
    before = network.proxy.resets
    network.proxy.drop_replies(3)
    wait_until(lambda: network.proxy.resets >= before + 3, 20.0, "no reply was lost")
    assert network.proxy.connections > 3
