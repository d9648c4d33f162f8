"""Every page drawn: with data, without any, and with the server gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.seed import HOSTILE, Seed
from trackside.models import Breaker, BreakerState
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trackside_dashboard import live

Visit = Callable[..., AppTest]
PAGES = ("views/fleet.py", "views/jobs.py", "views/job.py", "views/processes.py", "views/events.py")
JOB = "digits-a1b2c3"


def words(app: AppTest) -> str:
    """Everything that is written on the page outside of tables."""
    parts = [
        e.value for kind in ("markdown", "caption", "text", "code", "error", "warning") for e in getattr(app, kind)
    ]
    parts += [f"{metric.label} {metric.value}" for metric in app.metric]
    return "\n".join(str(part) for part in parts)


def table(app: AppTest, number: int = 0) -> str:
    return str(app.dataframe[number].value.to_csv())


def test_fleet_shows_slots_jobs_and_numbers(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"])
    assert not app.exception
    said = words(app)
    assert "green-badge" in said
    assert "live" in said
    assert {metric.label: metric.value for metric in app.metric}["Slots busy"] == "2 / 5"
    assert {metric.label: metric.value for metric in app.metric}["Failed · 24 h"] == "1"
    for slot_state in ("▶ busy", "○ idle", "✕ silent", "cordoned"):
        assert slot_state in said
    assert "◔ resting" not in said
    assert "67\u00a0°C" in said
    assert "17.8\u00a0GiB" in said


def test_fleet_shows_why_slots_take_no_work(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    held = "its GPU is in use: process 4242 holds 20000 MiB"
    seed.store.tell_gpu("beta-gpu-1", blocked=held, throttled="heat", events=[])
    seed.store.cordon("beta-gpu-1", cordoned=False)
    resting = Breaker(slot="alpha-cpu-1", state=BreakerState.OPEN, failed=("a", "b"), until_ms=2**41)
    assert seed.store.move_breaker(None, resting, cause="broken")
    app = visit(bus_urls["dashboard"])
    assert not app.exception
    said = words(app)
    assert "⊘ blocked" in said
    assert "process 4242 holds 20000 MiB" in said
    assert "slow" in said
    assert "◔ resting" in said
    assert "2 different jobs crashed on it" in said


def test_jobs_shows_each_state_with_its_reason(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/jobs.py")
    assert not app.exception
    said = table(app)
    for state in ("▶ running", "◔ waiting", "✕ failed", "✓ succeeded", "⊘ cancelled", "○ queued", "◫ paused"):
        assert state in said
    assert "next try in" in said
    assert "mat1 and mat2 shapes cannot be multiplied" in said
    assert "attempt 1 ended: killed" in said
    assert "accuracy" in said
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_jobs_are_filtered_by_the_address(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/jobs.py", q="digits")
    assert list(app.dataframe[0].value["name"]) == ["digits"]
    app = visit(bus_urls["dashboard"], "views/jobs.py", q="no such thing")
    assert not app.dataframe
    assert "No job matches" in words(app)


def test_a_job_shows_curves_attempts_output_and_history(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job=JOB)
    assert not app.exception
    said = words(app)
    assert "# digits" in said
    assert "▶ running" in said
    assert "**loss**" in said
    assert "**grad\\_norm**" in said
    assert "2 values are no number" in said
    assert "step 1421 loss" in said, "the output of the newest attempt"
    tables = [table(app, number) for number in range(len(app.dataframe))]
    assert any("killed" in one and "SIGKILL" in one and "step 700" in one for one in tables), "attempts"
    assert any("checkpoint of step 1400" in one for one in tables), "events"
    assert any("step-00001400-a2" in one for one in tables), "checkpoints"
    assert any("train.py --lr 0.1" in one for one in tables), "submission"


def test_the_output_of_an_older_attempt_can_be_chosen(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job=JOB)
    app.segmented_control(key="output-of").set_value(1).run()
    assert not app.exception
    assert "epoch 2 loss 1.1\n100%|####" in words(app), "colours gone, a rewritten line in its last form"


def test_a_failed_job_shows_its_traceback(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job="broken-k1m2n3")
    assert not app.exception
    assert any("RuntimeError: mat1 and mat2 shapes" in code.value for code in app.code)


@pytest.mark.parametrize("job", ["", "no-such-job", "../../etc", "<b>x</b>"])
def test_a_job_that_is_not_there_is_told_so(seed: Seed, bus_urls: Mapping[str, str], visit: Visit, job: str) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job=job)
    assert not app.exception
    assert "No such job" in words(app) or "No job chosen" in words(app)


def test_a_hostile_name_stands_for_itself(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    assert "<script>" in HOSTILE
    app = visit(bus_urls["dashboard"], "views/job.py", job="hostile-z4a5b6")
    assert not app.exception
    title = next(e.value for e in app.markdown if "alert" in e.value)
    assert "\\<script\\>alert\\(1\\)" in title
    assert "\\[x\\]\\(javascript" in title
    assert "\\*\\*bold" in title
    assert "\x1b" not in title


def test_processes_and_events(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/processes.py")
    assert not app.exception
    said = table(app)
    assert "✕ silent" in said
    assert "supervisor" in said
    assert "leads" in said
    app = visit(bus_urls["dashboard"], "views/events.py")
    assert not app.exception
    assert "running → waiting" in table(app)
    assert "attempt ended: killed" in table(app)


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_bus_tells_the_next_command(bus_urls: Mapping[str, str], visit: Visit, page: str) -> None:
    app = visit(bus_urls["dashboard"], page)
    assert not app.exception
    assert "trackside " in words(app) or page == "views/job.py"


@pytest.mark.parametrize("page", PAGES)
def test_without_a_server_a_page_says_so(tmp_path: Path, visit: Visit, page: str) -> None:
    app = visit(f"unix://{tmp_path}/none.sock", page, state="none", job=JOB)
    wait_until(lambda: live.hub().health().error, 5, "the reader found no error")
    app.run()
    assert not app.exception
    assert "no server" in words(app)
    assert "trackside up" in words(app)


def test_pages_stay_when_the_server_stops(own_server: EmbeddedServer, visit: Visit) -> None:
    Seed(own_server.url("supervisor")).everything()
    url = own_server.url("dashboard")
    visit(url, "views/job.py", job=JOB)
    own_server.stop()
    for page in PAGES:
        app = visit(url, page, state="stale", job=JOB)
        assert not app.exception, page
        assert "stale since" in words(app), page
        assert "trackside up" in words(app), page
    assert "No such job" not in words(visit(url, "views/job.py", state="stale", job=JOB))
