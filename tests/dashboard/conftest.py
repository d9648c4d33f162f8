"""A seeded bus and the app that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import trackside_dashboard
from dashboard.seed import Seed
from dashboard.served import Dashboard
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trackside_dashboard import live
from trackside_dashboard.hub import Hub

APP = Path(trackside_dashboard.__file__).with_name("app.py")


@pytest.fixture
def seed(bus_urls: Mapping[str, str]) -> Iterator[Seed]:
    """Jobs in every state on the shared server."""
    written = Seed(bus_urls["supervisor"])
    written.everything()
    yield written
    written.client.close()


@pytest.fixture
def new_hub() -> Iterator[Callable[[str], Hub]]:
    """Starts readers, and stops them."""
    started: list[Hub] = []

    def start(url: str) -> Hub:
        hub = Hub(lambda: url, every_s=0.1).start()
        started.append(hub)
        return hub

    yield start
    for hub in started:
        hub.stop()


def take_in(job_id: str) -> None:
    """Let the reader have all of a job: its page waits for that a moment only, and is drawn anew in a browser alone."""
    hub = live.hub()
    numbers = range(1, hub.snapshot().jobs[job_id].attempt + 1)

    def is_in() -> bool:
        views = [hub.view(job_id, attempt=number, wait_s=0.0) for number in (None, *numbers)]
        return views[-1] is not None and set(views[-1].tails) >= set(numbers)

    wait_until(is_in, 20, f"{job_id} is not read")


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., AppTest]]:
    """Opens a page of the app as a browser would: `visit(url, "views/jobs.py", state="failed")`."""

    def open_page(url: str, page: str = "views/fleet.py", *, state: str = "live", **query: str) -> AppTest:
        monkeypatch.setenv("TRACKSIDE_REDIS_URL", url)
        wait_until(lambda: live.hub().health().state == state, 30, f"the reader is not {state}")
        if query.get("job") in live.hub().snapshot().jobs and not live.hub()._is_crowded():
            take_in(query["job"])
        app = AppTest.from_file(APP, default_timeout=60)
        app.run()
        for name, value in query.items():
            app.query_params[name] = value
        return app.switch_page(page).run()

    live.hub.clear()
    yield open_page
    live.hub.clear()


@pytest.fixture
def dashboard(own_server: EmbeddedServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Dashboard]:
    """The real process on a seeded bus; `parametrize` it indirectly with further environment variables."""
    Seed(own_server.url("supervisor")).everything()
    started = Dashboard(own_server.url("dashboard"), tmp_path, **getattr(request, "param", {}))
    yield started
    started.process.kill()
    started.process.wait()
