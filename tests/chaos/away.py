"""A system whose server belongs to the test: its limits can be changed, it can be killed, and it can move house."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from chaos.conftest import SEED, SETTINGS
from chaos.proxy import Proxy
from chaos.rqinfo import watched
from server_harness import TESTER_RULES, killed, short_home
from trackside import server as server_
from trackside.cli.rehearse import Baseline, baseline
from trackside.cli.throwaway import Throwaway, throwaway
from trackside.models import Role
from trackside.processes import die_with_parent
from trackside.server import EmbeddedServer, ServerBinary

_ROLES: Final = {Role.LAUNCHER, Role.SUPERVISOR, Role.AGENT, Role.WORKER}
_NEEDED: Final = ('rename-command CONFIG ""', 'rename-command KEYS ""')  # by the tests alone
USER: Final = "chaos"  # may do everything, the test's own


class OpenServer(EmbeddedServer):
    """The embedded server with two commands more, which lives when its files may not grow."""

    def _write_config(self, binary: ServerBinary) -> None:
        super()._write_config(binary)
        lines = self.config_path.read_text().splitlines()
        self.config_path.write_text("\n".join(line for line in lines if line not in _NEEDED) + "\n")

    def _spawn(self, binary: ServerBinary) -> None:
        parent = os.getpid()

        def begin() -> None:
            die_with_parent(signal.SIGTERM, parent)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that may not grow is an error, as on a full disk

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_, "_end_with_parent", lambda: begin)
            super()._spawn(binary)


@dataclass(kw_only=True, slots=True)
class Away:
    """A system that reaches its server through the proxy, as by a name; the server may become another."""

    system: Throwaway
    proxy: Proxy
    server: EmbeddedServer
    undisturbed: Baseline

    def admin(self) -> redis.Redis:
        return redis.Redis.from_url(self.server.url(USER))

    def limit_files(self, size: int) -> None:
        """What the server's process may write to one file at most."""
        assert self.server.pid is not None
        resource.prlimit(self.server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill_server(self) -> None:
        killed(self.server)

    def move_server(self) -> None:
        """Stop the server, and start it with its data at another address: other socket, other port."""
        self.server.stop()
        home = self.server.home.with_name(f"{self.server.home.name}x")
        shutil.copytree(self.server.home, home, ignore=shutil.ignore_patterns("run", "*.sock", "lock"))
        moved = _server(home, self.server.binary)
        moved.start().wait_ready()
        self.server, self.proxy.upstream = moved, moved.socket_path

    def data_bytes(self) -> int:
        """How large the largest of the server's own files is."""
        return max(path.stat().st_size for path in (self.server.home / "redis").rglob("*") if path.is_file())

    def back(self, since_ms: int) -> bool:
        """Whether every process of the system has beaten since then."""
        beats = [beat for role in _ROLES for beat in self.system.beats(role)]
        return {beat.role for beat in beats if beat.at_ms > since_ms} == _ROLES

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of all services' logs about `event`."""
        found = []
        for path in (self.system.home / "logs").glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{") and (told := json.loads(line)).get("event") == event:
                    found.append(told)
        return found


def _server(home: Path, binary: ServerBinary | None) -> OpenServer:
    return OpenServer(home, binary=binary, extra_users={USER: TESTER_RULES})


@contextmanager
def away(binary: ServerBinary, script: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[Away]:
    with short_home() as home:
        server = _server(home / "server", binary)
        it: Away | None = None
        try:
            server.start().wait_ready()
            with Proxy(server.socket_path, SEED) as proxy:
                url = f"redis://supervisor@127.0.0.1:{proxy.port}/0"
                password = home / "server" / "secrets" / "supervisor"
                reach = {**settings, "redis_url": url, "redis_password_file": str(password)}
                with (
                    watched(lambda: (it.server if it is not None else server).url("operator", tcp=True)),
                    throwaway(home / "home", slots="cpu:2", settings=reach) as system,
                ):
                    base = baseline(system, lambda: system.submit(script))
                    it = Away(system=system, proxy=proxy, server=server, undisturbed=base)
                    yield it
        finally:
            (it.server if it is not None else server).stop()
