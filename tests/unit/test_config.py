"""Settings: checked at the start, the variable named."""

from __future__ import annotations

from pathlib import Path

import pytest

from trackside.config import Settings
from trackside.errors import ConfigurationError


def test_an_empty_environment_is_enough() -> None:
    settings = Settings.from_environ({"HOME": "/home/ada"})
    assert settings.home == Path("/home/ada/.local/state/trackside")
    assert settings.redis_url is None


def test_the_state_directory_of_the_desktop_wins_over_the_home() -> None:
    assert Settings.from_environ({"HOME": "/h", "XDG_STATE_HOME": "/s"}).home == Path("/s/trackside")


def test_a_variable_beats_the_default_and_an_argument_beats_the_variable() -> None:
    environ = {"HOME": "/h", "TRACKSIDE_RETRIES": "7", "TRACKSIDE_HOME": "/x"}
    assert Settings.from_environ(environ).retries == 7
    assert Settings.from_environ(environ, home=Path("/y")).home == Path("/y")


def test_the_test_profile_divides_times_by_ten_but_not_one_that_was_set() -> None:
    settings = Settings.from_environ({"HOME": "/h", "TRACKSIDE_PROFILE": "test", "TRACKSIDE_TICK_S": "0.5"})
    assert (settings.beat_s, settings.beat_ttl_s, settings.tick_s) == (0.1, 0.4, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRACKSIDE_BEAT_S", "soon"),
        ("TRACKSIDE_BEAT_S", "0"),
        ("TRACKSIDE_BEAT_S", "nan"),
        ("TRACKSIDE_RETRIES", "-1"),
        ("TRACKSIDE_RETRIES", "2.5"),
        ("TRACKSIDE_PROFILE", "fast"),
        ("TRACKSIDE_BEAT_TTL_S", "1.5"),
    ],
)
def test_a_wrong_value_stops_the_start_and_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_environ({"HOME": "/h", name: value})


def test_a_host_name_is_made_plain_and_the_setting_wins() -> None:
    assert Settings.from_environ({"HOME": "/h", "TRACKSIDE_HOST": "My.Lab_Box 1"}).host_name == "my-lab-box-1"
    assert Settings.from_environ({"HOME": "/h"}).host_name
    with pytest.raises(ConfigurationError, match="TRACKSIDE_HOST"):
        _ = Settings.from_environ({"HOME": "/h", "TRACKSIDE_HOST": "___"}).host_name
