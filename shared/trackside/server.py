"""The embedded server: a Redis or Valkey that belongs to one home, for machines where nobody runs one.

How one lives:

1. `choose_binary` finds a server program; it runs as a plain child with a configuration of its own.
2. The child holds the lock of its data directory, so that data never has two servers, and gets SIGTERM from the
   kernel when the process that started it dies, however that dies.
3. Passwords are made once, one a user; the configuration holds their digests only. Others who may read the home get
   their URL from `url_for`, or from `client_url` where settings may name another server.
4. `stop` is SIGTERM and a bounded wait. What was acknowledged is in the append-only file, also after SIGKILL of the
   server; a power cut can take the last second.

    <home>/redis/      data, lock, configuration        <home>/secrets/<user>     passwords
    <home>/run/        server.json, redis.sock          <home>/logs/redis.log     what the server says
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

from trackside.bus.acl import USERS, acl_lines, parse_version, unused_commands
from trackside.config import Settings
from trackside.errors import AlreadyRunning, ServerError
from trackside.homelock import HomeLock
from trackside.processes import boot, die_with_parent, is_same, start_time
from trackside.secretfiles import ensure_password, private_dir, read_password, write_private
from trackside.server_binary import ServerBinary, can_load, choose_binary
from trackside.server_log import explain

__all__ = ["EmbeddedServer", "HomeLock", "ServerBinary", "choose_binary", "client_url", "url_for"]

_SOCKET_PATH_MAX_BYTES: Final = 100  # the kernel takes 108, some systems 104
_POLL_S: Final = 0.005  # a start takes about 50 ms
_LEFTOVER_S: Final = 5.0  # a server whose launcher was killed is on its way out; measured 0.1 s
_LOG_MAX_BYTES: Final = 8 * 1024 * 1024


class EmbeddedServer:
    """The server of one home. Start it from a thread that lives as long as the server should: the kernel ties them."""

    def __init__(
        self,
        home: Path,
        *,
        binary: ServerBinary | None = None,
        port: int | None = None,
        maxmemory_mib: int | None = None,
        extra_users: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`port` None: the one of last time, or any free one. `extra_users`: name to ACL rules, for tests."""
        self.home = home.absolute()
        self.binary = binary
        self.socket_path = _socket_path(self.home)
        self.port: int | None = None
        self.log_path = self.home / "logs" / "redis.log"
        self.config_path = self.home / "redis" / "server.conf"
        self._wanted_port = port
        self._maxmemory_mib = maxmemory_mib
        self._extra_users = dict(extra_users or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None
        self._log_start = 0
        self.announced = False  # whether its state file names the server that runs

    @property
    def pid(self) -> int | None:
        """The server's process, None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start the server; `wait_ready` tells when it answers. Raises ServerError; AlreadyRunning for data in use."""
        if self.pid is not None:
            return self
        self.announced = False
        self.binary = self.binary or choose_binary()
        for part in (self.home, *(self.home / name for name in ("redis", "run", "secrets", "logs"))):
            private_dir(part)
        self._lock_data()
        try:
            self._check_data(self.binary)
            self.port = self._wanted_port or _free_port(_read_state(self.home).get("port"))
            self._write_config(self.binary)
            self._spawn(self.binary)
        except BaseException:
            self._unlock_data()
            raise
        return self

    def wait_ready(self, timeout_s: float = 30.0, *, given_up: Callable[[], bool] = lambda: False) -> Self:
        """Return once the server answers its admin user, or `given_up` says that nobody waits for it any more.

        Raises ServerError with the server's own reason if it ends.
        """
        deadline = time.monotonic() + timeout_s
        password = read_password(self.home / "secrets" / "admin")
        while not _answers(self.socket_path, "admin", password):
            if self.poll() is not None:
                self._process = None
                self._unlock_data()
                raise ServerError(explain(self._log_since_start(), self._facts()), log=str(self.log_path))
            if given_up():
                return self
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server did not answer within {timeout_s:g} s, perhaps still loading: see {self.log_path}"
                )
            time.sleep(_POLL_S)
        self._write_state(self.pid)
        self.announced = True
        return self

    def poll(self) -> int | None:
        """The exit status once the server has ended, None while it runs or was never started."""
        return None if self._process is None else self._process.poll()

    def stop(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, a bounded wait, then SIGKILL; the data stays. A second call does nothing."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()  # every acknowledged write is in the append-only file already
            self._process.wait()
        self._process = None
        with suppress(OSError):  # a full disk; what the file says of a process that has ended is not believed
            self._write_state(None)
        self._unlock_data()

    def url(self, user: str, *, tcp: bool = False) -> str:
        """What `user` connects with; `tcp` for programs that cannot use a unix socket."""
        return _url(self.home, user, self.socket_path, self.port, tcp=tcp)

    def __enter__(self) -> Self:
        return self.start().wait_ready()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _lock_data(self) -> None:
        """The lock goes to the server too, so it lasts while the server does, even if this process is killed."""
        fd = os.open(self.home / "redis" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LEFTOVER_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    pid = int(_read_state(self.home).get("pid") or 0)
                    raise AlreadyRunning(
                        f"{self.home / 'redis'} is in use by the server with process id {pid}: "
                        "stop that one, or set TRACKSIDE_HOME to another directory",
                        pid=pid,
                    ) from None
                time.sleep(_POLL_S)
            else:
                self._lock_fd = fd
                return

    def _unlock_data(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _check_data(self, binary: ServerBinary) -> None:
        """Refuse data of a server that this one cannot read: Redis 6.2 would start empty beside data of 7.0."""
        state = _read_state(self.home)
        wrote = parse_version(f"{state.get('flavour')} v={state.get('version')}")
        data = self.home / "redis"
        if wrote is not None and any(data.glob("appendonly*")) and not can_load(binary.server, wrote):
            raise ServerError(
                f"{binary.path} is {binary.server} and cannot load the data in {data}, which {wrote} wrote: "
                f"install that one again, or start empty with: mv '{data}' '{data}.old'"
            )

    def _write_config(self, binary: ServerBinary) -> None:
        users = (*USERS, *self._extra_users)
        passwords = {user: ensure_password(self.home / "secrets" / user) for user in users}
        lines = [
            *(f'rename-command {name} ""' for name in unused_commands(binary.server)),
            "daemonize no",
            "databases 1",
            "bind 127.0.0.1",
            "protected-mode yes",
            f"port {self.port}",
            f"unixsocket {_quoted(self.socket_path)}",
            "unixsocketperm 700",
            f"dir {_quoted(self.home / 'redis')}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",  # a full server says so; it never drops a job to make room
            *([f"maxmemory {self._maxmemory_mib}mb"] if self._maxmemory_mib else []),
            "client-output-buffer-limit normal 256mb 64mb 60",  # a reader that stopped reading must not fill the memory
            "client-output-buffer-limit pubsub 32mb 8mb 60",
            "acl-pubsub-default resetchannels",
            *acl_lines(binary.server, passwords, self._extra_users),
        ]
        write_private(self.config_path, "\n".join(lines) + "\n")

    def _spawn(self, binary: ServerBinary) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_MAX_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._log_start = os.fstat(fd).st_size
        assert self._lock_fd is not None  # noqa: S101 -- `start` has just taken it
        try:
            self._process = subprocess.Popen(
                [binary.path, self.config_path],
                cwd=self.home / "redis",
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                env={"LC_ALL": "C"},
                pass_fds=(self._lock_fd,),
                umask=0o077,
                start_new_session=True,  # Ctrl-C is the launcher's: services stop first, then the server
                preexec_fn=_end_with_parent(),  # noqa: PLW1509 -- nothing that takes a lock
            )
        except OSError as error:
            raise ServerError(f"cannot run {binary.path}: {error.strerror}. Reinstall it, or remove it") from error
        finally:
            os.close(fd)

    def _write_state(self, pid: int | None) -> None:
        assert self.binary is not None  # noqa: S101 -- only called for a server that was started
        state = {
            "pid": pid,
            "started": None if pid is None else start_time(pid),
            "boot": boot(),
            "port": self.port,
            "socket": str(self.socket_path),
            "flavour": self.binary.flavour,
            "version": self.binary.version,
            "origin": self.binary.origin,
            "started_at_ms": time.time_ns() // 1_000_000,
        }
        write_private(self.home / "run" / "server.json", json.dumps(state, indent=1) + "\n")

    def _log_since_start(self) -> str:
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read(64 * 1024).decode(errors="replace")

    def _facts(self) -> dict[str, str]:
        assert self.binary is not None  # noqa: S101 -- only asked about a server that was started
        return {
            "program": str(self.binary.path),
            "flavour": self.binary.flavour,
            # 7.0 and newer keep a directory of files and a manifest
            "several_files": "yes" if self.binary.server.redis_level >= (7, 0, 0) else "",
            "data": str(self.home / "redis"),
            "log": str(self.log_path),
            "port": str(self.port),
            "socket": str(self.socket_path),
        }


def url_for(home: Path, user: str, *, tcp: bool = False) -> str:
    """The URL of the server that runs for this home, from its state files; raises ServerError if none runs."""
    home = home.absolute()
    state = _read_state(home)
    if not is_same(state.get("pid"), state.get("started"), state.get("boot")):
        raise ServerError(f"no server runs for {home}: start one with `trackside up`, or set TRACKSIDE_REDIS_URL")
    return _url(home, user, Path(state["socket"]), state["port"], tcp=tcp)


def client_url(settings: Settings, user: str, *, tcp: bool = False) -> str:
    """Where `user` of this home's server connects, or the given server's URL."""
    if settings.redis_url is None:
        return url_for(settings.home, user, tcp=tcp)
    from trackside.bus.client import service_url  # here, since `import redis` costs 0.2 s

    return service_url(settings)


def _url(home: Path, user: str, socket_path: Path, port: int | None, *, tcp: bool) -> str:
    password = read_password(home / "secrets" / user)
    if tcp:
        return f"redis://{user}:{password}@127.0.0.1:{port}/0"
    return f"unix://{user}:{password}@{quote(str(socket_path))}?db=0"


def _read_state(home: Path) -> dict[str, Any]:
    try:
        state = json.loads((home / "run" / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # never started, or written by nobody we know: the next start writes it anew
    return state if isinstance(state, dict) else {}


def _socket_path(home: Path) -> Path:
    """In the home if the kernel takes so long a path, else in a directory of ours under the temporary one."""
    path = home / "run" / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX_BYTES:
        return path
    name = f"trackside-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    private = Path(tempfile.gettempdir()) / name
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or private.is_symlink():
        raise ServerError(
            f"{private} is not a private directory of this user: remove it, or use a shorter TRACKSIDE_HOME"
        )
    return private / "redis.sock"


def _free_port(wanted: object) -> int:
    """The wanted port if it is still free, so that a URL in somebody's notes stays good; else any free one."""
    for port in ([wanted] if isinstance(wanted, int) else []) + [0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerError("no free TCP port on 127.0.0.1: close some programs, or raise net.ipv4.ip_local_port_range")


def _answers(socket_path: Path, user: str, password: str) -> bool:
    """Whether the server takes commands; False while it starts or loads. Spoken by hand: `import redis` costs 0.2 s."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(str(socket_path))
            client.sendall(f"AUTH {user} {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                piece = client.recv(256)
                if not piece:
                    return False
                answer += piece
    except OSError:
        return False
    return answer.endswith(b"+PONG\r\n")


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _end_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the server; None where the kernel has no such signal."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    return lambda: die_with_parent(signal.SIGTERM, parent)
