"""Every page drawn: with data, without any, and with the server gone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from streamlit.testing.v1 import AppTest

from dashboard.seed import HOSTILE, Seed
from trackside.errors import BusUnavailable
from trackside.models import Breaker, BreakerState, Role
from trackside.server import EmbeddedServer, ServerBinary
from trackside.testing import wait_until
from trackside_dashboard import live, text

Visit = Callable[..., AppTest]
ALL_RULES = ("~*", "&*", "+@all")
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


def test_a_job_shows_the_runs_results(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    seed.summary(JOB, 2, test_loss=0.025123456, parameters=1_234_567, note=HOSTILE)
    app = visit(bus_urls["dashboard"], "views/job.py", job=JOB)
    assert not app.exception
    (rows,) = [table.value.to_dict("records") for table in app.dataframe if "Summary" in table.value.columns]
    found = {row["Summary"]: row["Value"] for row in rows}
    assert (found["test_loss"], found["parameters"]) == ("0.02512", "1234567")
    assert "\x1b" not in found["note"]


def test_the_output_of_an_older_attempt_can_be_chosen(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job=JOB)
    app.segmented_control(key="output-of").set_value(1).run()
    assert not app.exception
    assert "epoch 2 loss 1.1\n100%|####" in words(app), "colours gone, a rewritten line in its last form"


def test_a_failed_job_shows_its_traceback(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job="broken-k1m2n3")
    assert not app.exception
    assert any("RuntimeError: mat1 and mat2 shapes" in code.value for code in app.code)


def test_a_job_that_hung_shows_where_and_what_was_decided(
    seed: Seed, bus_urls: Mapping[str, str], visit: Visit
) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job=seed.hung_and_retried())
    assert not app.exception
    assert any("line 88 in next_batch" in code.value and "no step for 120.1 s" in code.value for code in app.code)
    assert "Attempt 1 ended: stalled" in [expander.label for expander in app.expander]
    (tab,) = [tab for tab in app.tabs if tab.label == "Why"]
    (told,) = [e.value.replace("\\", "").replace("\u2060", "") for e in tab.markdown]
    assert "attempt 1 ended: stalled (no step for 120.1 s (limit 120 s, learned" in told
    assert "by the rule 'retry with backoff'" in told
    assert "1 failure with 4 retries; 1 in a row without a newer checkpoint, 3 are too many; waits 1.3 s" in told
    assert told.splitlines()[-1].startswith("| → | next: attempt 2 runs on alpha-cpu-1")


def test_who_waits_sees_its_place_and_what_keeps_it_off_each_slot(
    seed: Seed, bus_urls: Mapping[str, str], visit: Visit
) -> None:
    app = visit(bus_urls["dashboard"], "views/job.py", job="queued-c7d8e9")
    assert not app.exception
    said = words(app).replace("\\", "")
    assert "waits for a free slot · 2nd in line" in said
    assert "alpha-cpu-0 is busy with digits-a1b2c3" in said
    assert "2nd in line" in table(visit(bus_urls["dashboard"], "views/jobs.py"))


def test_the_last_step_is_told_and_unknown_where_it_is(seed: Seed, bus_urls: Mapping[str, str], visit: Visit) -> None:
    slow: dict[str, Any] = {"slot": "alpha-cpu-0", "job": JOB, "attempt": 2, "step": 1430, "steps_per_s": 0.0}
    seed.beat(Role.WORKER, "alpha-cpu-0", "alpha", step_age_s=3700.0, **slow)
    url = bus_urls["dashboard"]
    assert "last step **62 min** ago" in words(visit(url))
    speed = next(e for e in visit(url, "views/job.py", job=JOB).metric if e.label == "Speed")
    assert (speed.value, speed.delta) == ("0 /s", "last step 62 min ago")
    rows = visit(url, "views/processes.py").dataframe[0].value.set_index("name")["step"]
    assert rows["alpha-cpu-0"] == "62 min ago"
    assert rows["alpha-cpu-1"] == text.UNKNOWN

    seed.beat(Role.WORKER, "alpha-cpu-0", "alpha", **slow)

    def read() -> bool:
        beat = live.hub().snapshot().beats["worker:alpha-cpu-0"]
        return beat is not None and beat.step_age_s is None

    wait_until(read, 20, "the beat is not read")
    assert f"last step **{text.UNKNOWN}**" in words(visit(url))


def test_every_page_says_that_the_server_takes_no_writes(
    server_binary: ServerBinary, fresh_home: Path, visit: Visit
) -> None:
    with EmbeddedServer(fresh_home, binary=server_binary, maxmemory_mib=8, extra_users={"tester": ALL_RULES}) as full:
        seed = Seed(full.url("supervisor"))
        seed.everything()
        url = full.url("dashboard")
        assert "takes no writes" not in words(visit(url))

        with redis.Redis.from_url(full.url("tester")) as tester:
            names = itertools.count()

            def fill() -> None:
                """To the last byte, again and again: the server gives back what connections needed."""
                for size in (10_000, 10):
                    with suppress(redis.exceptions.OutOfMemoryError):
                        while tester.rpush("filler", f"{next(names):0{size}}"):
                            pass

            def refused() -> str | None:
                fill()
                with suppress(BusUnavailable):
                    seed.beat(Role.AGENT, "alpha", "alpha")
                return live.hub().snapshot().refused

            for page in PAGES:
                wait_until(refused, 10, "it is not noticed")
                app = visit(url, page, job=JOB)
                assert "The server is out of memory and takes no writes" in words(app), page
                assert "stale" not in words(app), "it still answers"

            tester.delete("filler")
        wait_until(lambda: live.hub().snapshot().refused is None, 15, "it is told for too long")
        assert "takes no writes" not in words(visit(url))


def test_a_thinned_metric_is_said_to_be_so_beside_its_curve_and_its_file(
    seed: Seed, bus_urls: Mapping[str, str], visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(job_id: str) -> int:
        app = visit(bus_urls["dashboard"], "views/job.py", job=job_id)
        wait_until(lambda: live.hub().snapshot().views[job_id].complete, 10, "the metrics are not read")
        next(button for button in app.button if button.label == "Metrics as CSV").click().run()
        assert not app.exception
        return words(app).count(f"`trackside metrics --csv {job_id}` has every step")

    assert told(JOB) == 0
    monkeypatch.setattr("trackside_dashboard.lines.POINTS_MAX", 1024)
    live.hub.clear()  # what was read before is held whole
    assert told("baseline-g7h8j9") == 0, "it has fewer points"
    assert told(JOB) == 5, "its four metrics' curves, and the file"


def test_a_job_that_is_not_read_yet_is_not_said_to_be_missing(
    seed: Seed, bus_urls: Mapping[str, str], visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackside_dashboard.hub.SERIES_MAX", 0)
    shown = words(visit(bus_urls["dashboard"], "views/job.py", job="baseline-g7h8j9"))
    assert "This job is still being read" in shown
    assert "No such job" not in shown


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
    wait_until(lambda: live.hub().health().error, 20, "the reader found no error")
    app.run()
    assert not app.exception
    assert "no server" in words(app)
    assert "trackside up" in words(app)


def test_pages_stay_when_the_server_stops(own_server: EmbeddedServer, visit: Visit) -> None:
    Seed(own_server.url("supervisor")).everything()
    url = own_server.url("dashboard")
    visit(url, "views/job.py", job=JOB)
    own_server.stop()
    wait_until(lambda: live.hub().health().error, 20, "the reader found no error")
    for page in PAGES:
        app = visit(url, page, state="stale", job=JOB)
        assert not app.exception, page
        assert "stale since" in words(app), page
        assert "trackside up" in words(app), page
    assert "No such job" not in words(visit(url, "views/job.py", state="stale", job=JOB))
