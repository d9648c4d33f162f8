"""`trackside up`: one command that starts everything, watches it, restarts what dies, and stops it in order.

Start: lock the home, the embedded server (unless TRACKSIDE_REDIS_URL names one), supervisor, trainer, dashboard.
Watch: a dead service is started again, at once the first time, then with growing jittered waits.
Stop:  dashboard, trainer (attempts save at their next step), supervisor, server; then whatever is left below us.

Services get SIGTERM from the kernel if the launcher itself is killed, so nothing outlives it for long.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from trackside import logs, retry, upfile
from trackside.bus import beats
from trackside.bus.client import Client, connect, service_url, without_password
from trackside.config import PREFIX, Settings
from trackside.errors import BusError, ServerError, TracksideError
from trackside.homelock import HomeLock
from trackside.models import Beat, Role
from trackside.processes import become_subreaper, descendants, kill, stop_signals
from trackside.secretfiles import private_dir
from trackside.server import EmbeddedServer
from trackside.serviceprocess import Service

_STOP_MARGIN_S: Final = 5.0  # a service gets its own grace and this before SIGKILL
_START_LIMIT_S: Final = 60.0
_START_AGAIN_S: Final = 1.0
_LOOK_AGAIN_S: Final = 1.0  # at a server that has not answered within its limit: the services are to be seen to as well
_RESTART_MAX_S: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What `up` tells once everything runs."""

    home: Path
    server: str  # which server, or the given URL without its password
    rq_url: str | None  # for `rq info --url`; None where the server is not ours
    dashboard_url: str | None


class Launcher:
    """Everything of one home, from start to stop."""

    def __init__(self, settings: Settings, *, slots: str, dashboard: bool) -> None:
        self._settings = settings
        self._home = settings.home.absolute()
        self._host = settings.host_name
        self._lock = HomeLock(self._home)
        self._server: EmbeddedServer | None = None
        self._slots = slots
        self._port = _free_port(settings.dashboard_host, settings.dashboard_port) if dashboard else None
        self._services: list[Service] = []
        self._client: Client | None = None
        self._signals = 0
        self._started_at_ms = time.time_ns() // 1_000_000
        self._beat_due_s = 0.0
        self._log = logs.get()

    def run(self, on_ready: Callable[[Ready], None]) -> int:
        """Start, call `on_ready`, watch until SIGINT, SIGTERM or SIGHUP, stop; returns the exit code."""
        self._lock.acquire()
        become_subreaper()
        old = [(number, signal.signal(number, self._on_signal)) for number in stop_signals()]
        wake, wake_write = socket.socketpair()
        for end in (wake, wake_write):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        try:
            self._start()
            if self._await_services(wake):
                on_ready(self._ready())
                self._watch(wake)
            return 0
        finally:
            self._stop()
            signal.set_wakeup_fd(-1)
            wake.close()
            wake_write.close()
            for number, handler in old:
                signal.signal(number, handler)
            self._lock.release()

    # -- start -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for name in ("logs", "run"):
            private_dir(self._home / name)
        upfile.write_start(self._home)
        if self._settings.redis_url is None:
            self._server = EmbeddedServer(self._home)
            self._server.start().wait_ready(_START_LIMIT_S, given_up=self._is_stopped)
            if self._is_stopped():
                return
            url = self._server.url("supervisor")
        else:
            url = service_url(self._settings)
        self._client = connect(url, name="launcher")
        self._client.ping()
        grace_s = self._settings.stop_grace_s + _STOP_MARGIN_S
        self._services = [
            self._service("supervisor", ["supervisor"], _STOP_MARGIN_S),
            self._service("trainer", ["trainer", "--slots", self._slots], grace_s),
        ]
        if self._port is not None:
            self._services.append(self._service("dashboard", ["dashboard"], _STOP_MARGIN_S))
        for service in self._services:
            service.start()

    def _service(self, name: str, command: list[str], grace_s: float) -> Service:
        env = _environment(os.environ, self._settings, self._home)
        if self._server is not None:
            env[PREFIX + "REDIS_URL"] = without_password(self._server.url(name))
            env[PREFIX + "REDIS_PASSWORD_FILE"] = str(self._home / "secrets" / name)
        if self._port is not None:
            env[PREFIX + "DASHBOARD_PORT"] = str(self._port)
        argv = [sys.executable, "-m", "trackside", *command]
        return Service(name=name, argv=argv, env=env, log_path=self._home / "logs" / f"{name}.log", grace_s=grace_s)

    def _await_services(self, wake: socket.socket) -> bool:
        """Wait until supervisor, workers and dashboard serve; False if a stop was asked for meanwhile."""
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._signals:
            if self._serving():
                return True
            for service in self._services:
                status = service.ended()
                if status is not None:
                    raise ServerError(
                        f"the {service.name} ended with status {status} while starting:\n{service.log_end()}"
                    )
            if time.monotonic() > deadline:
                raise ServerError(f"not everything served within {_START_LIMIT_S:g} s: see {self._home / 'logs'}")
            self._pause(wake, 0.05)
        return False

    def _serving(self) -> bool:
        """Whether supervisor and trainer beat, a worker of that trainer too, and the dashboard listens."""
        assert self._client is not None  # noqa: S101 -- set by _start
        try:
            living = [beat for beat in beats.read(self._client).values() if beat is not None]
        except BusError:
            return False
        # Other hosts may beat on the same server.
        ours = {service.process.pid for service in self._services if service.process is not None}
        mine = {beat.role: beat for beat in living if beat.host == self._host and beat.pid in ours}
        workers = {beat.pid for beat in living if beat.host == self._host and beat.role is Role.WORKER}
        agent = mine.get(Role.AGENT)
        if Role.SUPERVISOR not in mine or agent is None or workers.isdisjoint(agent.children.values()):
            return False
        return self._port is None or _listens(self._settings.dashboard_host, self._port)

    def _ready(self) -> Ready:
        if self._server is not None and self._server.binary is not None:
            binary = self._server.binary
            server = f"{binary.flavour} {binary.version} ({binary.origin})"
            rq_url: str | None = self._server.url("operator", tcp=True)
        else:
            server, rq_url = without_password(service_url(self._settings)), None
        dashboard = None if self._port is None else f"http://{self._settings.dashboard_host}:{self._port}"
        ready = Ready(home=self._home, server=server, rq_url=rq_url, dashboard_url=dashboard)
        upfile.write(self._home, server=server, dashboard_url=dashboard)
        return ready

    # -- watch -----------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGHUP or not self._signals:  # shell and kernel both send one: no hurry is meant by it
            self._signals += 1

    def _is_stopped(self) -> bool:
        return self._signals > 0

    def _watch(self, wake: socket.socket) -> None:
        while not self._signals:
            self._watch_server()
            for service in self._services:
                self._watch_service(service)
            self._beat()
            self._pause(wake, min(self._settings.beat_s / 2, 0.25))

    def _watch_server(self) -> None:
        server = self._server
        if server is None or (server.pid is not None and server.announced):
            return
        try:
            if server.pid is None:
                self._log.error("server_died", status=server.poll())
                server.stop()
                server.start().wait_ready(_START_LIMIT_S, given_up=self._is_stopped)
            else:  # it was still loading then, or the disk did not take the file that commands find it by
                server.wait_ready(_LOOK_AGAIN_S, given_up=self._is_stopped)
        except (TracksideError, OSError) as error:  # its disk may be full: asked again until it takes the server
            event = "server_not_restarted" if server.pid is None else "server_not_announced"
            self._log.error(event, error=str(error))
            time.sleep(1.0)

    def _watch_service(self, service: Service) -> None:
        now_s = time.monotonic()
        status = service.ended()
        if status is not None:
            recent = [at for at in service.deaths_s if now_s - at < self._settings.restart_period_s]
            service.deaths_s = [*recent, now_s]
            first_s = self._settings.backoff_first_s / 4
            wait_s = retry.backoff_s(len(recent), first_s=first_s, max_s=_RESTART_MAX_S)
            if len(service.deaths_s) > self._settings.restart_intensity:
                wait_s = _RESTART_MAX_S / self._settings.scale
                self._log.error("service_keeps_dying", service=service.name, log=str(service.log_path))
            service.start_at_s = now_s + wait_s
            self._log.warning("service_died", service=service.name, status=status, restart_in_s=round(wait_s, 2))
        if service.process is None and now_s >= service.start_at_s:
            try:
                service.start()
            except OSError as error:  # no process to be had, or the disk does not take its log
                self._log.error("service_not_started", service=service.name, why=str(error))
                service.start_at_s = now_s + _START_AGAIN_S

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s < self._beat_due_s or self._client is None:
            return
        self._beat_due_s = now_s + self._settings.beat_s
        children = {service.name: service.process.pid for service in self._services if service.process is not None}
        if self._server is not None and self._server.pid is not None:
            children["redis"] = self._server.pid
        beat = Beat(
            role=Role.LAUNCHER, name=f"{self._host}-{os.getpid()}", host=self._host, pid=os.getpid(),
            started_at_ms=self._started_at_ms, at_ms=0, children=children,
        )  # fmt: skip
        try:
            beats.publish(self._client, beat, self._settings.beat_ttl_s)
        except BusError as error:
            self._log.warning("beat_missed", error=str(error))

    def _pause(self, wake: socket.socket, seconds: float) -> None:
        """Sleep, but wake at once for a signal or a service's end."""
        fds = [wake.fileno(), *(service.pidfd for service in self._services if service.pidfd >= 0)]
        readable, _, _ = select.select(fds, [], [], seconds)
        if wake.fileno() in readable:
            wake.recv(512)

    # -- stop ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        for service in sorted(self._services, key=lambda each: _STOP_ORDER.index(each.name)):
            service.stop(hurry=lambda: self._signals > 1)
        if self._client is not None:
            try:
                beats.retire(self._client, Role.LAUNCHER, f"{self._host}-{os.getpid()}")
            except BusError as error:
                self._log.warning("left_without_farewell", error=str(error))
            self._client.close()
        if self._server is not None:
            self._server.stop()
        kill(descendants(os.getpid()))
        _reap()
        upfile.remove(self._home)


_STOP_ORDER: Final = ("dashboard", "trainer", "supervisor")


def up(settings: Settings, *, slots: str, dashboard: bool, on_ready: Callable[[Ready], None]) -> int:
    """Run everything until stopped. Raises AlreadyRunning for a home in use, ServerError if a part does not start."""
    logs.configure(settings, role="launcher")
    return Launcher(settings, slots=slots, dashboard=dashboard).run(on_ready)


def _environment(environ: Mapping[str, str], settings: Settings, home: Path) -> dict[str, str]:
    env = {name: value for name, value in environ.items() if value or not name.startswith(PREFIX)}
    env[PREFIX + "HOME"] = str(home)
    if settings.log_format == "auto":
        env[PREFIX + "LOG_FORMAT"] = "json"
    return env


def _reap() -> None:
    """Collect orphans that became ours; those just killed may take a moment."""
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.01)
        except ChildProcessError:
            return


def _free_port(host: str, wanted: int) -> int:
    """The wanted port if it is free, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError(f"no port on {host} can be bound: set TRACKSIDE_DASHBOARD_HOST to an address of this machine")


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=0.2):
            return True
    except OSError:
        return False
