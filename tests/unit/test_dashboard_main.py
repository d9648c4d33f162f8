"""Where the dashboard may listen, and what it switches off."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import streamlit.config

from trackside.config import Settings
from trackside.errors import ConfigurationError
from trackside_dashboard.main import APP, check_address, flags, main


def settings(**given: str) -> Settings:
    return Settings.from_environ({"HOME": "/nowhere", **{f"TRACKSIDE_{name.upper()}": v for name, v in given.items()}})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_public_address_is_refused_and_the_way_out_named(host: str) -> None:
    given = Settings(home=Path("/nowhere"), dashboard_host=host)
    with pytest.raises(ConfigurationError, match="TRACKSIDE_DASHBOARD_PUBLIC=1"):
        check_address(given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_a_local_address_is_fine(host: str) -> None:
    check_address(settings(dashboard_host=host))


def test_a_public_address_can_be_asked_for() -> None:
    check_address(settings(dashboard_host="0.0.0.0", dashboard_public="1"))


def test_it_does_not_start_without_a_server_to_read() -> None:
    with pytest.raises(ConfigurationError, match="TRACKSIDE_REDIS_URL"):
        main(settings())


def test_options_exist_and_close_what_can_be_closed() -> None:
    given = flags(settings())
    known = streamlit.config.get_config_options()
    assert given.keys() <= known.keys(), "an option was renamed, so it protects nothing"
    assert given["browser.gatherUsageStats"] is False
    assert given["client.showErrorDetails"] == "none"
    assert given["server.enableStaticServing"] is False
    assert given["server.enableXsrfProtection"] is True
    assert given["server.enableCORS"] is True
    assert given["server.fileWatcherType"] == "none"
    assert given["server.maxUploadSize"] == 1
    assert "localhost" in given["server.allowedHosts"]


def test_it_is_registered_as_a_service_and_its_app_is_there() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["trackside.services"]["dashboard"] == "trackside_dashboard.main:main"
    assert APP.is_file()
    assert (APP.parent / ".streamlit" / "config.toml").is_file()
