"""The real process in a real browser: pages, news without a reload, and a server that goes away."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard.seed import Seed
from dashboard.served import Dashboard
from trackside.server import EmbeddedServer

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]
JOB = "digits-a1b2c3"
# A quiet Chromium: no calls to its maker, no sandbox inside a container.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: `apt-get install chromium`")
        pytest.skip("no Chromium: `apt-get install chromium`")
    return found


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=ARGUMENTS, timeout=60_000)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, timezone_id="Europe/Berlin")
        context.set_default_timeout(60_000)
        yield context.new_page()
        browser.close()


def test_pages_live_news_and_a_lost_server(own_server: EmbeddedServer, dashboard: Dashboard, page: Any) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(dashboard.at("/"))
    page.get_by_text("alpha-cpu-0").first.wait_for()
    page.locator(".st-key-frame").get_by_text("live").wait_for()
    page.get_by_text(re.compile(r"step 1\s430 / 2\s000 · 71\s%")).wait_for()

    page.goto(dashboard.at("/jobs"))
    page.get_by_text("9 jobs").wait_for()
    page.get_by_placeholder("Name, id, slot, reason").fill("digits")
    page.get_by_placeholder("Name, id, slot, reason").press("Enter")
    page.get_by_text("1 of 9 jobs").wait_for()
    assert "q=digits" in page.url, "a filtered list can be sent to somebody"
    # Where it stands at the click: what is above it may still grow.
    page.get_by_test_id("stDataFrame").click(position={"x": 200, "y": 38 * 1.5})
    page.wait_for_url(re.compile(rf"job\?.*job={JOB}"))

    page.get_by_role("heading", name="digits").wait_for()
    page.get_by_text("grad_norm").wait_for()
    page.get_by_text("2 values are no number").wait_for()
    page.locator(".stVegaLiteChart canvas, .stVegaLiteChart svg").nth(3).wait_for()

    seed = Seed(own_server.url("supervisor"))
    seed.metrics(JOB, 2, range(1431, 1451), names=("brand_new_metric",))
    page.get_by_text("brand_new_metric").wait_for()
    seed.output(JOB, 2, "a line written just now\n")
    page.get_by_text("a line written just now").wait_for()
    seed.store.pause(JOB)
    page.get_by_text("◫ pausing").wait_for()

    page.get_by_text("Metrics as CSV").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=re.compile("^Save ")).click()
    saved = Path(download.value.path()).read_text().splitlines()
    assert saved[0] == "metric,attempt,step,at_ms,value"
    assert any(line.startswith("brand_new_metric,2,1450,") for line in saved)

    own_server.stop()
    page.get_by_text("stale since").wait_for()
    page.get_by_role("heading", name="digits").wait_for()
    own_server.start().wait_ready()
    page.locator(".st-key-frame").get_by_text("live").wait_for()

    assert errors == []
    dashboard.process.send_signal(signal.SIGTERM)
    assert dashboard.process.wait(30) == 0, "it does not stop with a page open"
    log = dashboard.log.read_text()
    assert "Traceback" not in log, log
    assert '"level": "error"' not in log, log


def test_a_hostile_name_runs_nothing(dashboard: Dashboard, page: Any) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.goto(dashboard.at("/job?job=hostile-z4a5b6"))
    page.get_by_role("heading", name="<script>alert(1)</script>").wait_for()
    assert dialogs == []
    assert page.locator("a[href^='javascript']").count() == 0


def test_another_host_name_gets_no_data(dashboard: Dashboard) -> None:
    """A name that an attacker points at this machine must not open the data's websocket."""
    request = (
        "GET /_stcore/stream HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", dashboard.port), timeout=30) as client:
        client.sendall(request.encode())
        answer = client.recv(200).decode()
    assert " 403 " in answer.splitlines()[0]
