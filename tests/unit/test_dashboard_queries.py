"""Answers from a snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest

from makers import SPEC, a_checkpoint
from trackside.models import (
    Attempt,
    AttemptState,
    Beat,
    Breaker,
    BreakerState,
    Event,
    EventKind,
    Failure,
    Job,
    JobState,
    Outcome,
    Reason,
    Role,
    Slot,
)
from trackside_dashboard import life, queries, text
from trackside_dashboard.snapshot import JobView, Latest, Snapshot

NOW = 1_700_000_000_000
JOB = Job(
    id="a-1", name="first", state=JobState.RUNNING, spec=SPEC, created_at_ms=NOW - 60_000, changed_at_ms=NOW - 5_000,
    attempt=1, slot="s-0",
)  # fmt: skip
SLOT = Slot(id="s-0", host="h", kind="cpu", storage="x")
BEAT = Beat(
    role=Role.WORKER, name="s-0", host="h", pid=1, started_at_ms=NOW - 9_000, at_ms=NOW - 400, slot="s-0", job="a-1",
    attempt=1, step=50, total=200, steps_per_s=10.0, cpu_pct=90.0,
)  # fmt: skip


def snapshot(*jobs: Job, beat: Beat | None = BEAT, slot: Slot = SLOT, **more: object) -> Snapshot:
    made = Snapshot(
        version=1, at_ms=NOW, jobs={job.id: job for job in jobs}, order=tuple(job.id for job in jobs), slots=(slot,),
        beats={"worker:s-0": beat}, deadlines_ms={"worker:s-0": NOW - 12_000},
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]  # names of its fields


def test_progress_comes_from_the_beat_of_the_same_attempt() -> None:
    at = queries.progress(snapshot(JOB), JOB, NOW)
    assert (at.step, at.total, at.fraction, at.eta_s) == (50, 200, 0.25, 15.0)
    assert at.line == "step 50 / 200 · 25\u00a0% · 15 s left"


def test_a_checkpoint_that_is_ahead_of_the_beat_is_progress_of_its_own_attempt_only() -> None:
    ref = a_checkpoint(step=60, attempt=1)
    for step, checkpoint in ((60, ref), (50, replace(ref, attempt=0)), (50, replace(ref, job="other"))):
        job = replace(JOB, checkpoints=(checkpoint,))
        assert queries.progress(snapshot(job), job, NOW).step == step


def test_a_job_whose_worker_says_no_step_is_where_its_attempt_was_not_where_its_metrics_end() -> None:
    """`run.log(step=epoch, ...)` after the loop leaves the metrics at a step of long ago."""
    latest = {"a-1": Latest(step=10, total=1000)}
    done = replace(JOB, state=JobState.SUCCEEDED, slot=None, checkpoints=(a_checkpoint(step=900),))
    at = queries.progress(snapshot(done, latest=latest, reached={"a-1": 1000}), done, NOW)
    assert (at.step, at.fraction) == (1000, 1.0)
    assert queries.progress(snapshot(done, latest=latest), done, NOW).step == 900
    fresh = snapshot(JOB, beat=replace(BEAT, step=None), latest=latest, reached={"a-1": 700})
    assert queries.progress(fresh, JOB, NOW).step == 700
    assert queries.progress(snapshot(JOB, beat=None, latest=latest), JOB, NOW).step == 10


def test_the_last_step_ages_with_the_beat_that_told_of_it() -> None:
    stuck = replace(BEAT, step_age_s=100.0)
    for later_ms in (0, 30_000):
        at = queries.progress(snapshot(JOB, beat=stuck), JOB, NOW + later_ms)
        assert at.last_step_s == 100.4 + later_ms / 1000
    assert (
        queries.process_rows(snapshot(JOB, beat=replace(stuck, step_age_s=9.0)), NOW + 30_000)[0]["step"] == "39 s ago"
    )
    for unknown in (replace(stuck, step_age_s=None), replace(stuck, step=None)):
        assert queries.progress(snapshot(JOB, beat=unknown), JOB, NOW).last_step_s is None
        assert queries.process_rows(snapshot(JOB, beat=unknown), NOW)[0]["step"] == text.UNKNOWN


def test_the_beat_of_an_older_attempt_says_nothing() -> None:
    job = replace(JOB, attempt=2)
    at = queries.progress(snapshot(job, latest={"a-1": Latest(step=40, total=200)}), job, NOW)
    assert (at.step, at.steps_per_s, at.eta_s) == (40, None, None)


def test_unknown_totals_and_speeds_are_unknown_not_zero() -> None:
    beat = replace(BEAT, total=None, steps_per_s=0.0)
    at = queries.progress(snapshot(JOB, beat=beat), JOB, NOW)
    assert at.fraction is None
    assert at.eta_s is None
    assert at.line == "step 50"


@pytest.mark.parametrize(
    ("slot", "beat", "state"),
    [
        (SLOT, BEAT, "busy"),
        (SLOT, None, "silent"),
        (SLOT, replace(BEAT, job=None), "idle"),
        (SLOT, replace(BEAT, job=None, stopping=True), "stopping"),
        (replace(SLOT, cordoned=True), replace(BEAT, job=None), "cordoned"),
        (replace(SLOT, cordoned=True), BEAT, "busy"),
        (replace(SLOT, cordoned=True), None, "silent"),
        (replace(SLOT, blocked="process 7 holds 900 MiB"), replace(BEAT, job=None), "blocked"),
        (replace(SLOT, blocked="process 7 holds 900 MiB"), BEAT, "busy"),
    ],
)
def test_what_a_slot_does(slot: Slot, beat: Beat | None, state: str) -> None:
    tile = queries.tiles(snapshot(JOB, beat=beat, slot=slot), NOW)[0]
    assert tile.state == state
    assert tile.job is JOB, "the job stays on its slot while its worker is silent"


def test_a_slot_tells_why_it_takes_no_work_or_is_slow() -> None:
    def why(slot: Slot, breaker: Breaker | None = None) -> tuple[str, str | None]:
        breakers = {} if breaker is None else {slot.id: breaker}
        idle = replace(BEAT, job=None)
        tile = queries.tiles(snapshot(JOB, beat=idle, slot=slot, breakers=breakers), NOW)[0]
        return tile.state, tile.why

    assert why(SLOT) == ("idle", None)
    assert why(replace(SLOT, blocked="process 7 holds 900 MiB")) == ("blocked", "process 7 holds 900 MiB")
    broken = replace(SLOT, cordoned=True, cordon_reason="Xid 79: it has fallen off the bus")
    assert why(broken) == ("cordoned", "Xid 79: it has fallen off the bus")
    assert why(replace(SLOT, throttled="heat")) == ("idle", "slow: heat")
    resting = Breaker(slot="s-0", state=BreakerState.OPEN, failed=("a", "b"), until_ms=NOW + 12_000)
    assert why(SLOT, resting) == ("resting", "2 different jobs crashed on it; self-test in 12 s")
    probing = replace(resting, state=BreakerState.PROBING, until_ms=None)
    assert why(SLOT, probing) == ("resting", "2 different jobs crashed on it; its self-test runs")


def test_a_silent_slot_tells_for_how_long() -> None:
    tile = queries.tiles(snapshot(JOB, beat=None), NOW)[0]
    assert tile.silent_s == 12.0
    assert tile.beat_age_s is None


def test_waiting_tells_when_it_goes_on() -> None:
    job = replace(
        JOB, state=JobState.WAITING, slot=None, retry_at_ms=NOW + 12_400, reason=Reason.OOM_GPU, detail="from step 40"
    )
    assert queries.why(job, NOW) == "next try in 12 s · oom gpu · from step 40"
    assert queries.why(job, NOW + 60_000).startswith("next try now")


def test_rows_are_filtered_by_state_and_words() -> None:
    failed = replace(JOB, id="b-2", name="second", state=JobState.FAILED, reason=Reason.DIVERGED, ended_at_ms=NOW)
    known = snapshot(failed, JOB)
    assert [job.id for job in queries.matching(known)] == ["a-1", "b-2"], "what runs comes first"
    assert [job.id for job in queries.matching(known, states=["failed"])] == ["b-2"]
    assert [job.id for job in queries.matching(known, needle="DIVERGED sec")] == ["b-2"]
    assert queries.matching(known, states=["failed"], needle="first") == []
    row = queries.job_rows(known, [JOB], NOW)[0]
    assert (row["state"], row["name"], row["progress"], row["step"]) == (["▶ running"], "first", 25, "50 / 200")


def test_the_summary_counts_a_day() -> None:
    old = replace(JOB, id="c-3", state=JobState.FAILED, ended_at_ms=NOW - queries.DAY_MS - 1)
    new = replace(JOB, id="d-4", state=JobState.FAILED, ended_at_ms=NOW - 1000)
    facts = queries.summary(snapshot(JOB, old, new))
    assert (facts.running, facts.failed_day, facts.slots, facts.busy) == (1, 1, 1, 1)


def test_attempts_tell_how_they_ended_and_where_they_began() -> None:
    outcome = Outcome(reason=Reason.KILLED, signal="SIGKILL", first_step=1, last_step=90, noticed_after_ms=4)
    first = Attempt(
        job="a-1", number=1, state=AttemptState.ENDED, slot="s-0", host="h", assigned_at_ms=NOW - 90_000,
        started_at_ms=NOW - 80_000, ended_at_ms=NOW - 20_000, outcome=outcome,
    )  # fmt: skip
    second = replace(
        first, number=2, state=AttemptState.RUNNING, started_at_ms=NOW - 10_000, ended_at_ms=None, outcome=None,
        resumed_step=80,
    )  # fmt: skip
    newest, oldest = life.attempt_rows(JobView(attempts=(first, second)), NOW)
    assert (newest["attempt"], newest["resumed"], newest["ran"], newest["reason"]) == (2, "step 80", "10 s", "")
    assert (oldest["reason"], oldest["end"], oldest["steps"], oldest["ran"]) == ("killed", "SIGKILL", "1 … 90", "60 s")
    assert life.restarts([first, second]) == [{"attempt": 2, "step": 81, "at_ms": NOW - 10_000, "label": "attempt 2"}]


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (
            Outcome(
                reason=Reason.KILLED, signal="SIGSEGV", detail="a crash in native code",
                evidence=("Fatal Python error: Segmentation fault", "last output:\nabout to crash"),
            ),
            "a crash in native code\n\nFatal Python error: Segmentation fault\n\nlast output:\nabout to crash",
        ),
        (
            Outcome(reason=Reason.OOM_HOST, detail="the host ran out of memory", evidence=("peak 9000 MiB",)),
            "the host ran out of memory\n\npeak 9000 MiB",
        ),
        (Outcome(reason=Reason.LOST, detail="its host is silent"), "its host is silent"),
        (
            Outcome(
                reason=Reason.USER_ERROR, detail="ValueError: bad", evidence=("last output:\nthe same",),
                failure=Failure(type="ValueError", message="bad", traceback="Traceback\n\x1b[2J  x\nValueError: bad\n"),
            ),
            "Traceback\n  x\nValueError: bad\n",
        ),
        (
            Outcome(
                reason=Reason.USER_ERROR, detail="ValueError: bad", evidence=("last output:\nits end",),
                failure=Failure(type="ValueError", message="bad"),
            ),
            "ValueError: bad\n\nlast output:\nits end",
        ),
    ],
    ids=lambda value: value.reason.value if isinstance(value, Outcome) else "",
)  # fmt: skip
def test_a_bad_end_shows_what_is_kept_of_it(outcome: Outcome, shown: str) -> None:
    bad = Attempt(
        job="a-1", number=1, state=AttemptState.ENDED, slot="s-0", host="h", assigned_at_ms=0, outcome=outcome
    )
    good = replace(bad, number=2, outcome=Outcome(reason=Reason.PREEMPTED, detail="in order"))
    running = replace(bad, number=3, outcome=None)
    assert life.bad_end(JobView(attempts=(bad, good, running))) == (bad, shown)
    assert life.bad_end(JobView(attempts=(good, running))) is None


def test_every_kind_of_event_has_words() -> None:
    for kind in EventKind:
        event = Event(kind=kind, at_ms=NOW, job="a-1", attempt=1, old=JobState.QUEUED, new=JobState.RUNNING)
        assert queries.event_words(event)
    rows = queries.event_rows([Event(kind=kind, at_ms=NOW) for kind in EventKind], {}, NOW, kinds=["ended"])
    assert [row["kind"] for row in rows] == ["ended"]


def test_silent_processes_come_first() -> None:
    known = snapshot(JOB, beats={"agent:h": BEAT, "worker:s-0": None}, deadlines_ms={"worker:s-0": NOW - 3_000})
    rows = queries.process_rows(known, NOW)
    assert [row["name"] for row in rows] == ["s-0", "h"]
    assert rows[0]["beat"] == "none for 3 s"


def test_what_a_beat_does_not_say_the_hosts_sample_may() -> None:
    quiet = replace(BEAT, cpu_pct=None)
    sample = {"attempts": {"s-0": {"cpu_pct": 77.5, "rss_mib": 300}}, "gpus": "damaged"}
    tile = queries.tiles(snapshot(JOB, beat=quiet, samples={"h": sample}), NOW)[0]
    assert (tile.load_pct, tile.memory_mib) == (77.5, 300.0)
    gpu = replace(SLOT, kind="gpu", gpu_uuid="GPU-1")
    measured = {"gpus": [{"uuid": "GPU-1", "util_pct": 91, "memory_used_mib": 512, "temperature_c": None}]}
    tile = queries.tiles(snapshot(JOB, beat=quiet, slot=gpu, samples={"h": measured}), NOW)[0]
    assert (tile.load_pct, tile.memory_mib, tile.temperature_c) == (91.0, 512.0, None)
    assert queries.tiles(snapshot(JOB, beat=quiet), NOW)[0].load_pct is None


def test_the_story_says_that_nobody_leads_and_what_to_do_about_a_parent() -> None:
    queued = replace(JOB, state=JobState.QUEUED, slot=None, attempt=0, detail=None)
    idle = replace(BEAT, job=None)
    says = "no supervisor is heard: nothing is given out"
    alone = snapshot(queued, beat=idle)
    assert says in life.story(alone, queued, JobView(), NOW)[-1].text
    assert any(says in each for each in life.kept_off(alone, queued, NOW))
    parent = replace(JOB, id="p", state=JobState.CANCELLED)
    child = replace(queued, state=JobState.FAILED, spec=replace(JOB.spec, after=("p",)))
    told = life.story(snapshot(child, parent), child, JobView(), NOW)[-1].text
    assert "p, which it was to run after, was cancelled: `trackside retry p`" in told
    assert "`trackside retry a-1` does it again" in life.story(snapshot(child), child, JobView(), NOW)[-1].text
