"""Fixtures for several of the integration tests: an empty bus under the command line, a script, a bad line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from chaos.proxy import Proxy
from cli_world import World
from system import TRAIN
from trackside.server import EmbeddedServer


@pytest.fixture
def world(redis_server: EmbeddedServer, bus_urls: Mapping[str, str]) -> World:
    """The shared server's home and an empty bus."""
    return World.at(redis_server.home, bus_urls)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """`TRAIN` in a folder that may be sent along."""
    path = tmp_path / "train.py"
    path.write_text(TRAIN)
    return path


@pytest.fixture
def line(redis_server: EmbeddedServer) -> Iterator[Proxy]:
    """A way to the shared server that can be spoiled."""
    with Proxy(redis_server.socket_path, 7) as proxy:
        yield proxy
