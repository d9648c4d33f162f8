"""The launcher's watch over one service, with real processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from trackside import launcher as launcher_module
from trackside.config import Settings
from trackside.launcher import Launcher
from trackside.serviceprocess import Service
from trackside.testing import wait_until

CAP_S = 0.6
INTENSITY = 3


def told(logs: list[MutableMapping[str, Any]], event: str) -> list[MutableMapping[str, Any]]:
    return [line for line in logs if line["event"] == event]


def runs(service: Service) -> bool:
    return service.process is not None


def let_end(service: Service) -> None:
    if service.process is not None:
        service.process.wait()
        service.ended()


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    monkeypatch.setattr(launcher_module, "_RESTART_MAX_S", CAP_S)
    settings = Settings(home=tmp_path, restart_intensity=INTENSITY, restart_period_s=60, backoff_first_s=0.01)
    return Launcher(settings, slots="cpu:1", dashboard=False)


def watch(launcher: Launcher, service: Service, until: Callable[[], bool], message: str) -> None:
    """Let the launcher watch the service until that is so."""

    def there() -> bool:
        launcher._watch_service(service)
        return until()

    wait_until(there, 30, message)


@pytest.fixture
def dying(tmp_path: Path) -> Service:
    argv = [sys.executable, "-c", "raise SystemExit(3)"]
    return Service(name="trainer", argv=argv, env=dict(os.environ), log_path=tmp_path / "trainer.log", grace_s=1)


def test_a_service_that_keeps_dying_is_told_and_waits_the_longest_wait(launcher: Launcher, dying: Service) -> None:
    with capture_logs() as logs:
        watch(launcher, dying, lambda: bool(told(logs, "service_keeps_dying")), "nobody says that it keeps dying")
        deaths = told(logs, "service_died")
        assert [death["status"] for death in deaths] == [3] * (INTENSITY + 1)
        assert deaths[-1]["restart_in_s"] == CAP_S > max(death["restart_in_s"] for death in deaths[:-1])
        assert not runs(dying)
        watch(launcher, dying, lambda: runs(dying), "it is not started any more")
        assert time.monotonic() - dying.deaths_s[-1] >= CAP_S, "it did not wait"
        let_end(dying)


def test_a_service_whose_deaths_lie_back_is_started_soon(launcher: Launcher, dying: Service) -> None:
    dying.deaths_s = [time.monotonic() - 61] * 50
    dying.start()
    with capture_logs() as logs:
        watch(launcher, dying, lambda: bool(told(logs, "service_died")), "it does not die")
    assert told(logs, "service_keeps_dying") == []
    assert told(logs, "service_died")[0]["restart_in_s"] < CAP_S
    assert len(dying.deaths_s) == 1
    let_end(dying)
