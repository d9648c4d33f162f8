"""The one reader: it follows, it survives, and it asks for nothing that is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from dashboard.seed import SLOTS, Seed
from trackside.bus import keys
from trackside.bus.client import connect
from trackside.errors import BusDenied
from trackside.models import Job, JobState, Outcome, Reason
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trackside_dashboard import queries
from trackside_dashboard.hub import Hub
from trackside_dashboard.lines import canonical
from trackside_dashboard.snapshot import Snapshot

JOB = "digits-a1b2c3"
NewHub = Callable[[str], Hub]


def live(hub: Hub) -> bool:
    return hub.health().state == "live"


def points(hub: Hub, name: str = "loss") -> int:
    view = hub.view(JOB)
    return len(view.lines[name]) if view is not None and name in view.lines else 0


def test_pages_that_come_and_go_disturb_no_look_at_who_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(lambda: "redis://127.0.0.1:1")

    def another_comes() -> None:
        hub._wanted[f"job-{len(hub._wanted)}"] = 0.0

    class Jobs(dict[str, Job]):
        def __contains__(self, _: object) -> bool:
            another_comes()
            return True

    def watched(_: str) -> None:
        another_comes()

    another_comes()
    hub._snapshot = Snapshot(jobs=Jobs())
    assert not hub._is_crowded()
    monkeypatch.setattr("trackside_dashboard.hub.Watched", watched)
    hub._forget()
    assert len(hub._wanted) == 4


def test_it_takes_stock_of_everything(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader did not connect")
    snapshot = hub.snapshot()
    states = {job.state for job in snapshot.jobs.values()}
    assert {JobState.RUNNING, JobState.WAITING, JobState.FAILED, JobState.SUCCEEDED, JobState.PAUSED} <= states
    assert snapshot.total_jobs == len(snapshot.jobs) == 9
    assert [job.created_at_ms for job in map(snapshot.jobs.__getitem__, snapshot.order)] == sorted(
        (job.created_at_ms for job in snapshot.jobs.values()), reverse=True
    )
    assert [slot.id for slot in snapshot.slots][:2] == ["alpha-cpu-0", "alpha-cpu-1"]
    assert len(snapshot.events) == seed.client.xlen(keys.EVENTS)
    wait_until(lambda: hub.snapshot().latest.get("baseline-g7h8j9"), 10, "a finished job's last metrics are missing")


def test_new_metrics_are_added_and_nothing_is_read_twice(
    seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub
) -> None:
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: points(hub) == 732 + 730, 10, "the metrics were not read")
    before = hub.view(JOB)
    assert before is not None
    seed.metrics(JOB, 2, range(1431, 1451))
    wait_until(lambda: points(hub) == 732 + 730 + 20, 10, "the new metrics did not arrive, or old ones came twice")
    after = hub.view(JOB)
    assert after is not None
    assert after.version > before.version
    assert len(before.lines["loss"]) == 732 + 730, "a view given out earlier has changed"
    assert list(canonical(after.lines["loss"]).steps) == list(range(1, 1451))


def test_a_state_change_arrives_by_its_event(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader did not connect")
    seed.store.cancel("queued-c7d8e9")
    wait_until(
        lambda: hub.snapshot().jobs["queued-c7d8e9"].state is JobState.CANCELLED, 10, "the cancel was not seen in time"
    )
    seed.submit("brand-new", "brand new")
    wait_until(lambda: hub.snapshot().order[:1] == ("brand-new",), 10, "the new job was not seen in time")


def test_where_a_job_stands_is_its_newest_attempts_word(
    seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub
) -> None:
    seed.metrics("baseline-g7h8j9", 1, range(3, 4), total=600)  # `run.log(step=epoch, ...)` after its loop
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: hub.snapshot().latest.get("baseline-g7h8j9"), 10, "a finished job's last metrics are missing")
    snapshot = hub.snapshot()
    assert snapshot.latest["baseline-g7h8j9"].step == 3
    assert queries.progress(snapshot, snapshot.jobs["baseline-g7h8j9"], snapshot.at_ms).step == 600
    assert snapshot.reached == {"baseline-g7h8j9": 600, "flaky-p4q5r6": 120, JOB: 700}
    number = seed.start("queued-c7d8e9", SLOTS[4])
    seed.end("queued-c7d8e9", number, Outcome(reason=Reason.SUCCEEDED, last_step=50), JobState.SUCCEEDED)
    wait_until(lambda: hub.snapshot().reached.get("queued-c7d8e9") == 50, 10, "the attempt's end was not seen")


def test_the_output_of_each_attempt_is_followed(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader did not connect")
    first = hub.view(JOB, attempt=1, wait_s=20.0)
    assert first is not None
    assert "epoch 1" in first.tails[1]
    assert "step 701" not in first.tails[1]
    hub.view(JOB, attempt=2)
    seed.output(JOB, 2, "a last word\n")
    wait_until(lambda: "a last word" in hub.snapshot().views[JOB].tails.get(2, ""), 20, "new output did not arrive")
    assert hub.snapshot().views[JOB].tails[2].count("step 701 ") == 1


def test_it_keeps_what_it_knew_and_comes_back(own_server: EmbeddedServer, new_hub: NewHub) -> None:
    seed = Seed(own_server.url("supervisor"))
    seed.everything()
    hub = new_hub(own_server.url("dashboard"))
    wait_until(lambda: points(hub) == 1462, 10, "the metrics were not read")
    own_server.stop()
    wait_until(lambda: hub.health().error, 10, "the loss was not noticed")
    assert hub.health().state == "stale"
    assert len(hub.snapshot().jobs) == 9
    assert points(hub) == 1462
    own_server.start().wait_ready()
    wait_until(lambda: live(hub), 20, "the reader did not come back")
    Seed(own_server.url("supervisor")).submit("after-it", "after the restart")
    wait_until(lambda: "after-it" in hub.snapshot().jobs, 20, "nothing new was read after the restart")
    wait_until(lambda: points(hub) == 1462, 20, "the metrics are not there again, or twice")
    assert hub.health().faults == 0


def test_damaged_entries_do_not_stop_it(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader did not connect")
    with connect(bus_urls["tester"]) as tester:
        tester.xadd(keys.EVENTS, {"d": b"no json"})
        tester.xadd(keys.EVENTS, {"x": b"no event"})
        tester.xadd(keys.metrics(JOB), {"d": b"\xff\xfe"}, id="2-99999999")
        tester.xadd(keys.history(JOB), {"d": b"{}"})
        tester.set(keys.beat("worker", "alpha-cpu-0"), b"[]")
        tester.hset(keys.job("broken-k1m2n3"), "attempt", "many")
        tester.xadd(keys.samples("beta"), {"d": b"\x00"})
    seed.submit("still-alive", "still alive")
    wait_until(lambda: "still-alive" in hub.snapshot().jobs, 20, "the reader stopped at a damaged entry")
    wait_until(lambda: hub.health().faults > 0, 10, "the part that failed was not counted")
    wait_until(lambda: live(hub), 10, "the reader stopped with that part")


def test_a_damaged_newest_batch_hides_nothing(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    with connect(bus_urls["tester"]) as tester:
        tester.xadd(keys.metrics("baseline-g7h8j9"), {"d": b"\xff\xfe"}, id="2-99999999")
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader stopped at it")
    wait_until(lambda: hub.snapshot().latest.get("baseline-g7h8j9"), 10, "the batch before it is not shown")


def test_series_are_kept_for_so_many_jobs_only(
    seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trackside_dashboard.hub.SERIES_MAX", 2)
    hub = new_hub(bus_urls["dashboard"])
    wait_until(lambda: live(hub), 10, "the reader did not connect")
    for number in range(4):
        assert hub.view(f"invented-{number}", wait_s=0.0) is None
    assert hub.view(JOB, wait_s=20.0) is not None, "jobs that are not there shut out one that is"
    assert hub.view("baseline-g7h8j9", wait_s=20.0) is not None
    assert hub.view("flaky-p4q5r6") is None, "a third job was taken in"
    wait_until(lambda: len(hub._series) <= 2, 10, "too many series are kept")  # more within a tick


def test_it_asks_for_nothing_that_is_refused(seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub) -> None:
    with connect(bus_urls["tester"]) as tester:
        tester.execute_command("ACL", "LOG", "RESET")
        hub = new_hub(bus_urls["dashboard"])
        wait_until(lambda: live(hub), 10, "the reader did not connect")
        assert hub.view(JOB, attempt=1, wait_s=20.0) is not None
        wait_until(lambda: hub.snapshot().samples.get("beta"), 10, "samples were not read")
        assert tester.execute_command("ACL", "LOG") == []
    assert hub.health().faults == 0


def test_rules_of_an_older_version_cost_nothing_but_the_warning(
    seed: Seed, bus_urls: Mapping[str, str], new_hub: NewHub
) -> None:
    """The command line's user stands for one who may not ask the server how it is."""
    with connect(bus_urls["submitter"]) as client, pytest.raises(BusDenied):
        client.info("errorstats")
    hub = new_hub(bus_urls["submitter"])
    wait_until(lambda: live(hub) and hub.snapshot().samples, 10, "the reader did not connect")
    assert hub.snapshot().refused is None
    assert (hub.health().faults, hub.health().error) == (0, None)
