"""What runs beside the soak's own system: a second supervisor, and a second host behind a line that can be spoiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from chaos.proxy import Proxy
from trackside.cli.scene import Harm, Scene
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.models import Role
from trackside.processes import die_with_parent
from trackside.server import client_url
from trackside.testing import wait_until

HOST: Final = "beta"  # the second host's name
_START_LIMIT_S: Final = 60.0
_STOP_LIMIT_S: Final = 30.0


@dataclass(kw_only=True, slots=True)
class Kept:
    """A service that is started again whenever it has ended, as a service manager would."""

    words: tuple[str, ...]  # of the command line
    env: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def keep(self) -> None:
        """Start it unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trackside", *self.words], env=self.env,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=lambda: die_with_parent(signal.SIGTERM, parent),  # noqa: PLW1509 -- it takes no lock
            )  # fmt: skip
        self.starts += 1

    def end(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(kw_only=True, slots=True)
class Beside:
    """The second supervisor and the second host, and the line to the latter."""

    proxy: Proxy
    supervisor: Kept
    host: Kept

    def keep(self) -> None:
        """Start again what has ended."""
        self.supervisor.keep()
        self.host.keep()

    def spoil(self, scene: Scene, seconds: float, **weather: Any) -> Harm:
        """Make the host's line bad for a while."""
        harm = Harm(at_ms=now_ms())
        self.proxy.change(**weather)
        time.sleep(seconds)
        self.proxy.clear()
        return harm

    def cut_off(self, scene: Scene) -> Harm:
        """Nothing gets through for longer than every limit of silence: the attempt is overtaken, and learns of it."""
        return self.spoil(scene, _silent_s(scene.system), swallow_requests=True, swallow_replies=True)

    def keep_answers(self, scene: Scene) -> Harm:
        """What the host says arrives, and it hears nothing for longer than every limit."""
        return self.spoil(scene, _silent_s(scene.system), swallow_replies=True)

    def keep_requests(self, scene: Scene) -> Harm:
        """What the host says is swallowed, for less time than makes it silent."""
        return self.spoil(scene, 0.5 * scene.system.settings.beat_ttl_s, swallow_requests=True)

    def reset(self, scene: Scene) -> Harm:
        """One in ten packets breaks its connection."""
        return self.spoil(scene, 3.0, reset_share=0.1)


@contextmanager
def beside(system: Throwaway, home: Path, slots: int, seed: int) -> Iterator[Beside]:
    """Both of them until the block ends; the host shares the system's folder of jobs, so that they can move."""
    upstream = Path(urlsplit(client_url(system.settings, "trainer")).path)
    logs = system.home / "logs"
    with Proxy(upstream, seed) as proxy:
        env = {
            **system.env,
            "TRACKSIDE_HOME": str(home),
            "TRACKSIDE_DATA": str(system.settings.data_dir),
            "TRACKSIDE_HOST": HOST,
            "TRACKSIDE_REDIS_URL": f"redis://trainer@127.0.0.1:{proxy.port}/0",
            "TRACKSIDE_REDIS_PASSWORD_FILE": str(system.home / "secrets" / "trainer"),
        }
        it = Beside(
            proxy=proxy,
            supervisor=Kept(
                words=("--home", str(system.home), "supervisor"), env=system.env, log=logs / "supervisor-2.log"
            ),
            host=Kept(words=("trainer", "--slots", f"cpu:{slots}"), env=env, log=logs / f"{HOST}.log"),
        )
        try:
            it.keep()
            wait_until(lambda: len(system.beats(Role.SUPERVISOR)) > 1, _START_LIMIT_S, "no second supervisor is seen")
            wait_until(
                lambda: sum(beat.host == HOST for beat in system.beats(Role.WORKER)) == slots,
                _START_LIMIT_S, f"{HOST} has not {slots} workers",
            )  # fmt: skip
            yield it
        finally:
            it.host.end()
            it.supervisor.end()


def _silent_s(system: Throwaway) -> float:
    return 2 * system.settings.beat_ttl_s + system.settings.silent_margin_s
