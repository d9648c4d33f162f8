"""The dashboard as its own process."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from trackside.testing import wait_until

START: Final = (
    "from trackside.config import Settings; from trackside_dashboard.main import main; main(Settings.from_environ())"
)


def serves(port: int, within_s: float = 1.0) -> bool:
    """Whether a dashboard at that port says that it is well."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=within_s)
    try:
        client.request("GET", "/_stcore/health")
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()


class Dashboard:
    """Answers when it is made; whoever made it ends its process."""

    def __init__(self, url: str, folder: Path, **more: str) -> None:
        self.log = folder / "dashboard.log"
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "VIRTUAL_ENV")}
        with socket.socket() as held, self.log.open("wb") as out:
            # Held until the dashboard has it, so that the kernel gives it to nobody else; who listens may share it.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            self.port = int(held.getsockname()[1])
            given = {"HOME": str(folder), "TRACKSIDE_REDIS_URL": url, "TRACKSIDE_DASHBOARD_PORT": str(self.port)}
            self.process = subprocess.Popen(
                [sys.executable, "-c", START], env={**kept, **given, **more}, cwd=folder, stdout=out, stderr=out
            )
            wait_until(self.answers, 60, "the dashboard does not answer")

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return serves(self.port)

    def at(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"
