"""Starts the dashboard: checks where it may listen, then runs Streamlit in this process until SIGTERM or SIGINT."""

from __future__ import annotations

import ipaddress
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

from trackside import logs
from trackside.bus.client import service_url, without_password
from trackside.config import Settings
from trackside.errors import ConfigurationError

APP: Final = Path(__file__).with_name("app.py")


def main(settings: Settings) -> int:
    """Serve until told to stop; raises ConfigurationError before anything listens."""
    logs.configure(settings, role="dashboard")
    check_address(settings)
    url = service_url(settings)

    from streamlit.web import cli

    from trackside_dashboard import live

    live.give(settings)
    logs.get().info(
        "dashboard_start", url=f"http://{settings.dashboard_host}:{settings.dashboard_port}", bus=without_password(url)
    )
    given = [f"--{name}={_word(value)}" for name, many in flags(settings).items() for value in _each(many)]
    # Streamlit prints its start and its stop, and does neither where its output goes to a full disk.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        cli.main(["run", str(APP), *given], standalone_mode=False)
    return 0


def check_address(settings: Settings) -> None:
    """Refuse an address that others can reach: the dashboard has no login, and shows output and parameters."""
    if settings.dashboard_public or _is_loopback(settings.dashboard_host):
        return
    raise ConfigurationError(
        f"TRACKSIDE_DASHBOARD_HOST is {settings.dashboard_host!r}, which others can reach, and the dashboard has no "
        "login: use 127.0.0.1 and a tunnel (ssh -L), or, behind a proxy with a login or a container's port published "
        "on 127.0.0.1, set TRACKSIDE_DASHBOARD_PUBLIC=1",
        setting="TRACKSIDE_DASHBOARD_HOST",
    )


def flags(settings: Settings) -> dict[str, Any]:
    """Streamlit's options; given here they win over every configuration file."""
    return {
        "server.address": settings.dashboard_host,
        "server.port": settings.dashboard_port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.maxUploadSize": 1,
        "server.maxMessageSize": 20,
        # A name that was made to point here is not in the list; behind a proxy only the operator knows the names.
        "server.allowedHosts": [] if settings.dashboard_public else ["localhost", "127.0.0.1", "[::1]", "::1"],
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "runner.magicEnabled": False,
        "logger.level": "warning",
    }


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
