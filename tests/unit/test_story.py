"""The story of a job: every attempt, its end, the rule and its numbers, and what comes next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

import makers
from makers import SLOT, a_checkpoint, a_job, an_attempt, an_event
from trackside.models import (
    AttemptState,
    Beat,
    Breaker,
    BreakerState,
    Event,
    EventKind,
    Job,
    JobState,
    Outcome,
    Reason,
    Role,
    Slot,
)
from trackside.story import COUNTED, RULES, obstacles, tell, what_is_next
from trackside_supervisor.placement import place
from trackside_supervisor.recovery import Decision, Policy, decide
from trackside_supervisor.watch import Limits, Sight, lost

SPEC = replace(makers.SPEC, submitted_by="ann@box")
JOB = a_job(state=JobState.RUNNING, spec=SPEC, attempt=1)
FIRST = an_attempt(
    state=AttemptState.ENDED, slot="h-gpu0", assigned_at_ms=1000, started_at_ms=2000, ended_at_ms=14_000,
    outcome=Outcome(
        reason=Reason.KILLED, detail="the training process was killed (SIGKILL)", first_step=1, last_step=57,
        seen_by="worker:h-gpu0", noticed_after_ms=3,
    ),
)  # fmt: skip


def decided(job: Job) -> Event:
    return moved(job, decide(job, FIRST, None, Policy(poison_after=3, backoff_s=lambda _: 1.25), 14_000))


def moved(job: Job, decision: Decision) -> Event:
    data = {**decision.inputs, "detail": decision.detail}
    return an_event(EventKind.TRANSITION, 14_000, 1, cause=decision.rule, old=job.state, new=decision.state, data=data)


def test_an_attempt_is_told_from_its_slot_to_what_comes_next() -> None:
    events = [
        an_event(EventKind.SUBMITTED, 0, new=JobState.QUEUED, by="cli:ann@box"),
        an_event(EventKind.ASSIGNED, 1000, 1, data={"slot": "h-gpu0"}),
        an_event(EventKind.ENDED, 14_000, 1, cause="killed", data={"detail": "SIGKILL"}),
        decided(JOB),
    ]
    waiting = replace(JOB, state=JobState.WAITING, retry_at_ms=15_250)
    told = [each.text for each in tell(waiting, [FIRST], events, 15_000)]
    assert told == [
        "submitted by ann@box",
        "attempt 1 was given to h-gpu0",
        "attempt 1 ended: killed (SIGKILL); after 12 s; having done steps 1 to 57; it brought no checkpoint; seen by "
        "worker:h-gpu0 within 3 ms",
        "decided: waiting, by the rule 'retry with backoff': it brought no newer checkpoint; the wait grows each time "
        "(1 failure with 4 retries; 1 in a row without a newer checkpoint, 3 are too many; waits 1.2 s)",
        "next: attempt 2 in 0.2 s, from the beginning",
    ]


def test_a_placement_is_told_with_its_place_in_line() -> None:
    gpu = replace(JOB, id="big", state=JobState.QUEUED, spec=replace(SPEC, device="gpu", priority="high"))
    queued = replace(JOB, state=JobState.QUEUED, created_at_ms=5)
    (placed,) = place([queued, gpu, replace(queued, id="k", created_at_ms=9)], [SLOT])
    event = an_event(EventKind.ASSIGNED, 1000, 1, data={"slot": "h-cpu0", "inputs": placed.inputs})
    told = tell(JOB, [], [event], 15_000)[0].text
    assert told == (
        "attempt 1 was given to h-cpu0 (normal priority; the first of 3 in line that it fits, before big, which it "
        "does not fit; the only free slot)"
    )


def test_a_loss_is_told_with_its_rule_and_its_limit() -> None:
    running = replace(FIRST, state=AttemptState.RUNNING, outcome=None)
    sight = Sight(now_ms=9000, deadlines={"worker:h-gpu0": 6000}, beats={}, clear=True)
    loss = lost(JOB, running, sight, Limits(margin_ms=2000, claim_ms=9000))
    assert loss is not None
    data = {"detail": loss.outcome.detail, "rule": loss.rule, "inputs": loss.inputs}
    event = an_event(EventKind.ENDED, 9000, 1, cause="lost", data=data)
    told = tell(JOB, [replace(running, outcome=loss.outcome)], [event], 15_000)[0].text
    assert "no beat for 3.0 s past the limit" in told
    assert "by the rule 'silent host'" in told
    assert "limit 2.0 s" in told


def test_a_job_that_takes_its_hosts_along_is_told_with_the_count_and_the_wait() -> None:
    lost = replace(FIRST, outcome=Outcome(reason=Reason.LOST, detail="its host fell silent", rule="silent host"))
    policy = Policy(poison_after=3, backoff_s=lambda _: 7.5)

    def story(host_faults: int) -> str:
        decision = decide(replace(JOB, host_faults=host_faults), lost, None, policy, 14_000)
        return tell(JOB, [lost], [moved(JOB, decision)], 15_000)[0].text

    assert story(0).startswith("decided: queued, by the rule 'host fault'")
    assert story(4).endswith("(5 in a row without a newer checkpoint, 10 are too many; waits 7.5 s)")
    assert story(9).startswith("decided: failed, by the rule 'takes its hosts along'")
    assert story(9).endswith("(10 in a row without a newer checkpoint, 10 are too many)")


def test_a_checkpoint_is_told_with_the_end_of_its_attempt() -> None:
    saved = an_event(EventKind.CHECKPOINT, 3000, 1, data={"step": 50})
    end = an_event(EventKind.ENDED, 14_000, 1, cause="killed")
    told = [each.text for each in tell(JOB, [FIRST], [saved, end], 15_000)]
    assert len(told) == 2
    assert "its newest checkpoint is of step 50" in told[0]


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_has_something_that_comes_next_or_says_that_it_is_over(state: JobState) -> None:
    text = what_is_next(replace(JOB, state=state, checkpoints=(a_checkpoint(50),)), None, 0)
    assert text.startswith("next: ") is not state.terminal


BEAT = Beat(role=Role.WORKER, name="h-cpu0", host="h", pid=1, started_at_ms=0, at_ms=0)
ELSEWHERE = a_checkpoint(50, storage="there")


@pytest.mark.parametrize(
    ("job", "slot", "breaker", "beat", "word"),
    [
        (replace(JOB, spec=replace(SPEC, device="gpu")), SLOT, None, BEAT, "asks for a gpu"),
        (replace(JOB, spec=replace(SPEC, slot="h-cpu1")), SLOT, None, BEAT, "is not h-cpu1"),
        (replace(JOB, checkpoints=(ELSEWHERE,)), SLOT, None, BEAT, "another host"),
        (JOB, SLOT, None, None, "silent"),
        (JOB, replace(SLOT, cordoned=True), None, BEAT, "trackside uncordon h-cpu0"),
        (JOB, SLOT, Breaker(slot="h-cpu0", state=BreakerState.OPEN, failed=("a", "b")), BEAT, "2 different jobs"),
        (JOB, SLOT, None, replace(BEAT, stopping=True), "stopping"),
        (JOB, SLOT, None, replace(BEAT, job="other"), "busy with other"),
        (JOB, SLOT, None, BEAT, "is free"),
    ],
)
def test_a_queued_job_is_told_what_keeps_it_off_each_slot(
    job: Job, slot: Slot, breaker: Breaker | None, beat: Beat | None, word: str
) -> None:
    breakers = {} if breaker is None else {slot.id: breaker}
    told = obstacles(job, [slot], breakers, {"worker:h-cpu0": beat}, 0)
    assert len(told) == 1
    assert word in told[0]
    free = [(slot, breakers)] if beat is not None and not (beat.stopping or beat.job) and not slot.cordoned else []
    placed = any(place([replace(job, state=JobState.QUEUED)], [each], with_) for each, with_ in free)
    assert placed is ("is free" in told[0]), "the story and the placement disagree"


def test_without_slots_it_says_what_to_start() -> None:
    assert "trackside trainer" in obstacles(JOB, [], {}, {}, 0)[0]


def test_the_rules_that_count_are_rules() -> None:
    assert set(RULES) > COUNTED
    assert decided(JOB).cause in COUNTED


def test_a_wait_says_which_of_its_cases_it_was() -> None:
    def told(job: Job, reason: Reason) -> str:
        attempt = replace(FIRST, outcome=Outcome(reason=reason))
        decision = decide(job, attempt, None, Policy(poison_after=3, backoff_s=lambda _: 1.25), 14_000)
        assert decision.rule == "retry with backoff"
        return tell(job, [attempt], [moved(job, decision)], 15_000)[0].text

    saved = replace(JOB, checkpoints=(a_checkpoint(50),))
    barren, short = "it brought no newer checkpoint", "memory was short on the host"
    assert barren in told(JOB, Reason.KILLED)
    assert short not in told(JOB, Reason.KILLED)
    assert f"{barren} and {short}; the wait" in told(JOB, Reason.OOM_HOST)
    assert f": {short}; the wait" in told(saved, Reason.OOM_HOST)


def test_one_retry_is_told_as_one() -> None:
    job = replace(JOB, spec=replace(SPEC, retries=1))
    assert "(1 failure with 1 retry;" in tell(job, [FIRST], [decided(job)], 15_000)[0].text


def test_a_loop_that_was_left_early_is_told_with_its_steps() -> None:
    done = replace(JOB, state=JobState.SUCCEEDED)
    early = replace(FIRST, total_steps=60, outcome=Outcome(reason=Reason.SUCCEEDED, first_step=1, last_step=29))
    end = an_event(EventKind.ENDED, 14_000, 1, cause="succeeded")
    told = [each.text for each in tell(done, [early], [end], 15_000)]
    assert "; it left its loop after 29 of 60 steps;" in told[0]
    assert told[1] == "it is done; it left its loop after 29 of 60 steps"
    assert what_is_next(done, replace(early, total_steps=29), 15_000) == "it is done"


def test_an_attempt_lasted_as_long_as_its_process_and_not_until_somebody_could_say_so() -> None:
    def told(ran_ms: int | None) -> str:
        outcome = Outcome(reason=Reason.KILLED, ran_ms=ran_ms, seen_by="worker:h-gpu0", noticed_after_ms=23_991)
        attempt = replace(FIRST, ended_at_ms=30_000, outcome=outcome)
        return tell(JOB, [attempt], [an_event(EventKind.ENDED, 30_000, 1, cause="killed")], 31_000)[0].text

    assert "; after 4.0 s;" in told(4000)
    assert "; after 28 s;" in told(None), "nobody saw its process"
    assert "; after" not in told(0), "its process was never started"


def test_a_refused_pause_keeps_its_reason() -> None:
    refused = an_event(
        EventKind.TRANSITION, 5, 1, cause="pause refused", old=JobState.PAUSING, new=JobState.RUNNING,
        data={"detail": "it saves no checkpoints"},
    )  # fmt: skip
    told = tell(JOB, [], [refused], 10)[0].text
    assert told == "its worker: it cannot pause, so it runs on (it saves no checkpoints); it is running"


def test_a_hang_tells_what_the_process_was_doing_and_where_its_stacks_are_whatever_came_after() -> None:
    stopped = "the process was stopped by a signal (SIGSTOP)"
    hung = replace(
        FIRST, outcome=Outcome(reason=Reason.STALLED, detail="no step for 5 s", evidence=(stopped, "stacks of ..."))
    )
    second = replace(FIRST, number=2, outcome=Outcome(reason=Reason.SUCCEEDED))
    events = [
        an_event(EventKind.ENDED, 14_000, 1, cause="stalled", data={"detail": "no step for 5 s"}),
        an_event(EventKind.ENDED, 20_000, 2, cause="succeeded"),
    ]
    done = replace(JOB, state=JobState.SUCCEEDED, attempt=2)
    told = [each.text for each in tell(done, [hung, second], events, 21_000)]
    assert f"; {stopped}; its stacks: `trackside show j`, `trackside logs j --attempt 1`" in told[0]
    assert "stacks" not in told[1]


def test_nothing_is_said_to_be_given_out_or_decided_where_nobody_leads() -> None:
    unled = "no supervisor is heard: nothing is given out; see `trackside ps`"
    assert obstacles(JOB, [SLOT], {}, {"worker:h-cpu0": BEAT}, 0) == [f"h-cpu0 is free, but {unled}"]
    leader = replace(BEAT, role=Role.SUPERVISOR, leader=True)
    led = {"worker:h-cpu0": BEAT, "supervisor:h-1": leader}
    assert obstacles(JOB, [SLOT], {}, led, 0) == ["h-cpu0 is free: the supervisor gives it out"]
    queued = replace(JOB, state=JobState.QUEUED, attempt=0)
    waiting = replace(JOB, state=JobState.WAITING, retry_at_ms=9)
    for job, newest, says in ((queued, None, True), (waiting, FIRST, True), (JOB, FIRST, True), (JOB, None, False)):
        assert (unled in tell(job, [newest] if newest else [], [], 5, unled=unled)[-1].text) is says
        assert "no supervisor" not in tell(job, [newest] if newest else [], [], 5)[-1].text


def test_a_slot_that_rests_says_until_when() -> None:
    rests = Breaker(slot="h-cpu0", state=BreakerState.OPEN, failed=("a", "b"), until_ms=50_000)
    beats = {"worker:h-cpu0": BEAT}
    (told,) = obstacles(JOB, [SLOT], {"h-cpu0": rests}, beats, 10_000)
    assert told == "h-cpu0 rests, since 2 different jobs crashed on it: its self-test comes in 40 s"
    (told,) = obstacles(JOB, [SLOT], {"h-cpu0": replace(rests, state=BreakerState.PROBING)}, beats, 10_000)
    assert told.endswith(": its self-test runs")


def test_what_to_do_again_is_what_a_retry_would_accept() -> None:
    child = replace(JOB, id="c", state=JobState.FAILED, attempt=0, spec=replace(SPEC, after=("p",)))

    def told(parents: Mapping[str, Job | None]) -> str:
        return what_is_next(child, None, 5, parents=parents)

    again = ", then submit this one again with --after the new id"
    parent = replace(JOB, id="p", state=JobState.FAILED)
    assert told({"p": parent}) == f"it is over; p, which it was to run after, failed: `trackside retry p`{again}"
    assert "was cancelled: `trackside retry p`" in told({"p": replace(parent, state=JobState.CANCELLED)})
    orphan = replace(parent, attempt=0, spec=replace(SPEC, after=("g",)))
    assert f"do as `trackside why p` says{again}" in told({"p": orphan})
    assert "no longer on the bus: submit it again without it" in told({"p": None})
    assert "`trackside retry c`" in told({"p": replace(parent, state=JobState.SUCCEEDED)})
    assert "`trackside retry c`" in told({})
