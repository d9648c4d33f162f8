"""A server that comes back at another address, and a crowd of clients that find it again."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import pytest

from chaos.away import USER, Away, away
from chaos.conftest import also
from trackside.bus.client import connect
from trackside.cli.faults import Fault
from trackside.cli.rehearse import Result, healed, rehearse
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import now_ms
from trackside.server import ServerBinary
from trackside.testing import wait_until
from trackside_trainer.patience import Patience

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(150)]
BACK_S: Final = 10.0
CLIENTS: Final = 64
AWAY_S: Final = 3.0


@pytest.fixture(scope="module")
def moving(server_binary: ServerBinary, script: Path) -> Iterator[Away]:
    with away(server_binary, script) as it:
        yield it


def test_a_server_at_another_address_is_found_again(
    moving: Away,
    script: Path,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    before = (moving.server.port, moving.server.socket_path)

    def inject(scene: Scene) -> Harm:
        harm = Harm(at_ms=now_ms())
        moving.move_server()
        assert moving.server.port != before[0]
        assert moving.server.socket_path != before[1]
        there_ms = now_ms()
        wait_until(lambda: moving.back(there_ms), BACK_S, "not everybody found the server at its new address")
        figure(f"F34: all beat at the new address {(now_ms() - there_ms) / 1000:.2f} s after it served")
        return harm

    healed(moving.system)
    fault = Fault(id="F34", name="server's address changes", inject=inject, attempts_max=1)
    judged(rehearse(moving.system, fault, lambda: moving.system.submit(script), moving.undisturbed, rng))


@dataclass(kw_only=True, slots=True)
class Caller(threading.Thread):
    """A client as a worker is one: it calls, and has patience."""

    url: str
    over: threading.Event
    tries_at_s: list[float] = field(default_factory=list)
    last_answer_s: float = 0.0

    def __post_init__(self) -> None:
        threading.Thread.__init__(self)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        client, patience = connect(self.url), Patience()
        while not self.over.wait(max(0.05, patience.wait_s())):
            self.tries_at_s.append(time.monotonic())
            if patience.call(client.time) is not None:
                self.last_answer_s = time.monotonic()
        client.close()


def test_a_crowd_comes_back_spread_out(
    moving: Away,
    script: Path,
    rng: random.Random,
    judged: Callable[[Result], None],
    figure: Callable[[str], None],
) -> None:
    broken: list[str] = []

    def inject(scene: Scene) -> Harm:
        over = threading.Event()
        callers = [Caller(url=moving.server.url(USER, tcp=True), over=over) for _ in range(CLIENTS)]
        for caller in callers:
            scene.stack.callback(caller.join, 10)
        scene.stack.callback(over.set)
        for caller in callers:
            caller.start()
        wait_until(lambda: all(caller.last_answer_s for caller in callers), 30.0, "not all clients began")
        harm = Harm(at_ms=now_ms())
        moving.kill_server()
        died_s = time.monotonic()
        time.sleep(AWAY_S)
        moving.server.start().wait_ready()
        there_s = time.monotonic()
        wait_until(lambda: all(each.last_answer_s > there_s for each in callers), BACK_S, "not all clients came back")
        first_s = [next(at for at in caller.tries_at_s if at > there_s) - there_s for caller in callers]
        tries = sum(died_s < at < there_s for caller in callers for at in caller.tries_at_s)
        with moving.admin() as admin:
            connections = int(cast(dict[str, int], admin.info("stats"))["total_connections_received"])
        # A wait is half its ceiling on average, which is reached after five tries: two tries a second from then on.
        if tries > CLIENTS * (8 + 4 * (there_s - died_s)):
            broken.append(f"{tries} tries of {CLIENTS} clients in {there_s - died_s:.1f} s")
        if connections > 3 * CLIENTS:
            broken.append(f"{connections} connections for {CLIENTS} clients and one system")
        crowd = max(sum(at <= each < at + 0.05 for each in first_s) for at in first_s)
        figure(
            f"F35: {CLIENTS} clients back within {max(first_s):.2f} s, half of them within "
            f"{statistics.median(first_s):.2f} s, {crowd} in one 50 ms; {tries} tries in the {there_s - died_s:.1f} s "
            f"without a server, {connections} connections after it"
        )
        return harm

    healed(moving.system)
    fault = Fault(id="F35", name="64 clients find the server again", inject=inject, attempts_max=1)
    result = rehearse(moving.system, fault, lambda: moving.system.submit(script), moving.undisturbed, rng)
    judged(also(result, *broken))
