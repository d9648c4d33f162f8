"""Fixtures for all tests: a clean environment, and a real server.

`redis_server` is one server for the session; `bus_urls` gives its URLs, with all data removed first. Tests that stop,
freeze or kill a server take `own_server`, which is theirs alone, or one of their module. `fresh_home` is a private home
with a short path.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from server_harness import TESTER_RULES, emptied, short_home
from trackside.errors import ServerError
from trackside.server import EmbeddedServer, ServerBinary, choose_binary

# A moment without the processor is no finding, and what is found can be repeated by whoever reads the output.
settings.register_profile("trackside", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("trackside")


def pytest_configure() -> None:
    """Heed Ctrl-C, and let what the tests start heed it: a shell that runs us in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them."""
    for name in list(os.environ):
        if name.startswith(("TRACKSIDE_", "RQ_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server_binary() -> ServerBinary:
    """The server program; missing on a laptop is a skip, missing in CI a failure."""
    try:
        return choose_binary()
    except ServerError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    """An empty home, removed afterwards."""
    with short_home() as home:
        yield home


@pytest.fixture
def hangs_up() -> Iterator[None]:
    """The end of a terminal is heeded, by what a test starts too, also where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def redis_server(server_binary: ServerBinary) -> Iterator[EmbeddedServer]:
    """One server for all tests that do not stop it."""
    with (
        short_home() as home,
        EmbeddedServer(home, binary=server_binary, extra_users={"tester": TESTER_RULES}) as server,
    ):
        yield server


@pytest.fixture
def bus_urls(redis_server: EmbeddedServer) -> Mapping[str, str]:
    """URL by user (those of `acl.USERS`, and `tester`, who may do everything); the bus is empty."""
    return emptied(redis_server)


@pytest.fixture
def own_server(server_binary: ServerBinary, fresh_home: Path) -> Iterator[EmbeddedServer]:
    """A server of this test alone, running; it may be stopped, frozen or killed."""
    with EmbeddedServer(fresh_home, binary=server_binary, extra_users={"tester": TESTER_RULES}) as server:
        yield server
