"""A pause loses no step: it waits for whatever takes long, and is refused where something would be lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from store_world import events_of, moved
from trackside.models import Job, JobState, Reason
from trackside.server import EmbeddedServer, ServerBinary
from trackside.testing import wait_until
from trackside_trainer.pausing import LOOP_BEGUN
from trainer_harness import Trainer, kill, server_and_trainer, steps_script, trainer_on

GRACE_S = 0.5
LONG_S = 1.5  # of a step, a save: longer than the grace
STALL_S = 3.0
LOADS_S = 2.5  # longer than a script has of which nothing says that it will come to a loop


@pytest.fixture(scope="module")
def trainer(redis_server: EmbeddedServer) -> Iterator[Trainer]:
    settings = {"stop_grace_s": GRACE_S, "stall_limit_s": STALL_S, "stall_floor_s": STALL_S, "save_limit_s": STALL_S}
    with trainer_on(redis_server, **settings) as trainer:
        yield trainer


TRAINS = """
import os, pathlib, resource, signal, sys, time, torch, trackside
class Slow:
    seconds = 0.0
    def state_dict(self):
        print("saves", flush=True)
        time.sleep(self.seconds)
        return {{}}
    def load_state_dict(self, state):
        pass
def files_of_at_most(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
FULL, EMPTY = 65536, resource.RLIM_INFINITY
{before}
run, slow = trackside.init(), Slow()
state = run.checkpointer(model=torch.nn.Linear(256, 256), slow=slow, every=None)
for step in run.steps({total}):
    run.log(loss=1.0 / step)
    time.sleep(0.01)
    {within}
{after}
"""


def trains(*, before: str = "", within: str = "pass", after: str = "", total: int = 100_000) -> str:
    return TRAINS.format(before=before, within=within, after=after, total=total)


def is_paused_without_loss(trainer: Trainer, job: Job, *, after_step: int) -> None:
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.exit_code) == (Reason.PAUSED, 75), outcome
    assert (outcome.last_step or 0) >= after_step
    assert trainer.store.job(job.id).checkpoints[0].step == outcome.last_step, "the pause lost steps"


def asked_to_pause(trainer: Trainer, job: Job) -> None:
    """Pause it and return when its process has been told."""
    trainer.store.pause(job.id)
    wait_until(lambda: '"attempt_stopping"' in log_of(trainer, job), 20, "it was not asked to pause")


def taken_back(trainer: Trainer, job: Job) -> None:
    """Resume it and return when its process has been told."""
    assert trainer.store.resume(job.id).state is JobState.RUNNING
    wait_until(lambda: '"pause_taken_back"' in log_of(trainer, job), 20, "its pause was not taken back")


WAITS_TO_GO = "while not pathlib.Path('go').exists(): time.sleep(0.01)"


def go(trainer: Trainer, job: Job) -> None:
    (trainer.home / "jobs" / job.id / "attempts" / "1" / "work" / "go").touch()


def refused(trainer: Trainer, job: Job, *words: str) -> None:
    found = wait_until(
        lambda: (now := trainer.store.job(job.id)).state is JobState.RUNNING and now, 10, "the pause was not refused"
    )
    assert found
    assert all(word in (found.detail or "") for word in words), found.detail
    last = [event for event in events_of(trainer.store, job.id) if event.new is JobState.RUNNING][-1]
    assert (last.cause, last.data["detail"]) == ("pause refused", found.detail)


LONG_STEP = f"if step == 5: print('long', flush=True); time.sleep({LONG_S})"
STANDS = f"if step == 5:\n        print('long', flush=True)\n        {WAITS_TO_GO}"
NO_LIMIT = 0.0  # of a stall: such a step lasts for as long as the test takes


def test_a_pause_waits_for_a_step_that_is_longer_than_the_grace(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=LONG_STEP))
    trainer.says(job, "long")
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=5)


def test_a_pause_waits_for_a_checkpoint_that_is_longer_than_the_grace(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=f"slow.seconds = {LONG_S}"))
    trainer.running(job, step=3)
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=3)


def test_a_run_that_hangs_while_it_is_to_pause_ends_stalled(trainer: Trainer) -> None:
    job = trainer.assign(trains(within="if step == 5: print('hangs', flush=True); time.sleep(600)"))
    trainer.says(job, "hangs")
    trainer.store.pause(job.id)
    outcome = trainer.ended(job, 20)
    assert outcome.reason is Reason.STALLED
    assert 'train.py", line' in outcome.evidence[1], "its stacks are not told"


def test_a_cancel_does_not_wait_for_what_a_pause_waits_for(trainer: Trainer) -> None:
    job = trainer.assign(trains(within="if step == 5: print('long', flush=True); time.sleep(600)"))
    trainer.says(job, "long")
    asked_to_pause(trainer, job)
    trainer.store.cancel(job.id)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.signal) == (Reason.CANCELLED, "SIGKILL")


def test_a_pause_that_is_taken_back_changes_nothing(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=STANDS, total=60), stall_limit_s=NO_LIMIT)
    trainer.says(job, "long")
    asked_to_pause(trainer, job)
    taken_back(trainer, job)
    go(trainer, job)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 60)
    assert trainer.steps(job) == list(range(1, 61))


def test_a_stranger_who_stops_a_run_after_a_pause_was_taken_back_is_heard(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=STANDS), stall_limit_s=NO_LIMIT)
    trainer.says(job, "long")
    asked_to_pause(trainer, job)
    taken_back(trainer, job)
    go(trainer, job)
    pid = trainer.running(job, step=8)
    os.kill(pid, signal.SIGTERM)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.stranger, outcome.exit_code) == (Reason.PREEMPTED, True, 75)
    assert trainer.store.job(job.id).checkpoints[0].step == outcome.last_step


def log_of(trainer: Trainer, job: Job) -> str:
    """What the services have logged about the job."""
    return "".join(line for line in trainer.log.read_text().splitlines(keepends=True) if job.id in line)


def test_a_script_that_saves_nothing_is_not_paused_and_is_told_how_it_could_be(trainer: Trainer) -> None:
    job = trainer.assign(steps_script(150, 0.02))
    trainer.running(job, step=3)
    trainer.store.pause(job.id)
    refused(trainer, job, "saves no checkpoints", "run.checkpointer()")
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 150)


LOADS = f"print('loads', flush=True)\ntime.sleep({LOADS_S})"
LOADS_UNTIL_TOLD = f"print('loads', flush=True)\n{WAITS_TO_GO}"
STARTS = """
import pathlib, time, torch, trackside
{imports}
run = trackside.init()
{reads}
state = run.checkpointer(model=torch.nn.Linear(2, 1), every=None)
{loads}
for step in run.steps({total}):
    time.sleep(0.01)
"""


def starts(*, imports: str = "", reads: str = "", loads: str = "", total: int = 100_000) -> str:
    return STARTS.format(imports=imports, reads=reads, loads=loads, total=total)


def causes(trainer: Trainer, job: Job) -> list[str | None]:
    return [event.cause for event in events_of(trainer.store, job.id)]


@pytest.mark.parametrize("script", [starts(reads=LOADS), starts(loads=LOADS)], ids=["init", "checkpointer"])
def test_a_pause_waits_for_a_run_that_loads(trainer: Trainer, script: str) -> None:
    job = trainer.assign(script)
    trainer.says(job, "loads")
    trainer.store.pause(job.id)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.exit_code) == (Reason.PAUSED, 75), outcome
    assert "pause refused" not in causes(trainer, job)
    saved = trainer.store.job(job.id).checkpoints
    assert (saved[0].step if saved else 0) == (outcome.last_step or 0), "the pause lost steps"


def test_a_pause_that_a_loading_run_is_asked_for_can_be_taken_back(trainer: Trainer) -> None:
    job = trainer.assign(starts(loads=LOADS_UNTIL_TOLD, total=20))
    trainer.says(job, "loads")
    asked_to_pause(trainer, job)
    taken_back(trainer, job)
    go(trainer, job)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 20)


@pytest.mark.parametrize("saves", [True, False])
def test_a_pause_waits_for_the_imports_of_a_script_that_has_stepped_before(
    trainer: Trainer, tmp_path: Path, saves: bool
) -> None:
    second = tmp_path / "second"
    imports = f"if pathlib.Path({str(second)!r}).exists():\n    print('again', flush=True)\n    time.sleep({LOADS_S})"
    script = starts(imports=imports)
    job = trainer.assign(script if saves else script.replace("state = ", "# "))
    pid = trainer.running(job, step=3)
    second.touch()
    kill(pid)
    trainer.ended(job)
    moved(trainer.store, job.id, JobState.QUEUED)
    job = trainer.give(job.id)
    trainer.says(job, "again")
    trainer.store.pause(job.id)
    if saves:
        assert trainer.ended(job).reason is Reason.PAUSED
    else:
        refused(trainer, job, "saves no checkpoints")
        trainer.store.cancel(job.id)
        trainer.ended(job)


UNMODIFIED = f"import pathlib, time\nprint('works', flush=True)\n{WAITS_TO_GO}"
LOGS_UNTIL_TOLD = """
at = 0
while not pathlib.Path('go').exists():
    at += 1
    run.log(step=at, loss=0.5)
    print('works', flush=True)
    time.sleep(0.02)
"""
LOGS = f"import pathlib, time, trackside\nrun = trackside.init()\n{LOGS_UNTIL_TOLD}"


@pytest.mark.parametrize("script", [UNMODIFIED, LOGS], ids=["unmodified", "logs"])
def test_a_script_that_does_not_come_to_a_loop_is_not_paused(trainer: Trainer, script: str) -> None:
    job = trainer.assign(script)
    trainer.says(job, "works")
    trainer.store.pause(job.id)
    refused(trainer, job, "has not come to a step loop within 1 s")
    go(trainer, job)
    assert trainer.ended(job).reason is Reason.SUCCEEDED


def test_a_refusal_does_not_stand_beside_the_steps_that_come_after_it(trainer: Trainer) -> None:
    job = trainer.assign(starts(imports=LOADS_UNTIL_TOLD, total=400))
    trainer.says(job, "loads")
    trainer.store.pause(job.id)
    refused(trainer, job, "has not come to a step loop")
    go(trainer, job)
    trainer.running(job, step=1)
    wait_until(lambda: trainer.store.job(job.id).detail is None, 10, "it is said to have no loop while it steps")
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 400), "the refused pause was taken up again"
    assert causes(trainer, job).count(LOOP_BEGUN) == 1


def test_a_script_that_saves_without_a_loop_is_not_waited_for_longer_than_a_start_may_take(
    server_binary: ServerBinary,
) -> None:
    script = starts(loads=LOGS_UNTIL_TOLD, total=1)
    with server_and_trainer(server_binary, startup_limit_s=1.5) as (_, trainer):
        job = trainer.assign(script)
        wait_until(lambda: trainer.steps(job), 20, "it does not log")
        trainer.store.pause(job.id)
        refused(trainer, job, "within 1.5 s")
        go(trainer, job)
        outcome = trainer.ended(job)
        assert (outcome.reason, outcome.last_step) == (Reason.SUCCEEDED, 1), "the refused pause was heeded"


def test_a_pause_that_the_disk_does_not_take_is_refused_and_the_next_one_works(
    trainer: Trainer, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    job = trainer.assign(trains(within=f"files_of_at_most(EMPTY if pathlib.Path({str(mended)!r}).exists() else FULL)"))
    trainer.running(job, step=3)
    trainer.store.pause(job.id)
    refused(trainer, job, "was not written (File too large)", "then pause it again")
    assert trainer.store.job(job.id).checkpoints == ()
    mended.touch()
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=8)


def test_a_pause_after_the_last_step_is_refused_where_that_was_not_saved(trainer: Trainer) -> None:
    job = trainer.assign(
        trains(before="files_of_at_most(FULL)", after=f"print('tests', flush=True)\n{WAITS_TO_GO}", total=20)
    )
    trainer.says(job, "tests")
    trainer.store.pause(job.id)
    refused(trainer, job, "was not written (File too large)")
    go(trainer, job)
    assert trainer.ended(job).reason is Reason.SUCCEEDED


def test_a_pause_after_the_last_step_needs_no_end_of_what_comes_then(trainer: Trainer) -> None:
    job = trainer.assign(trains(after="print('tests', flush=True)\ntime.sleep(600)", total=20))
    trainer.says(job, "tests")
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=20)


def test_a_run_that_obeys_its_pause_is_not_reminded_of_it_while_it_tidies_up(trainer: Trainer) -> None:
    tidies = f"import atexit\natexit.register(lambda: (time.sleep({LONG_S}), print('tidied', flush=True)))"
    job = trainer.assign(trains(before=tidies))
    trainer.running(job, step=3)
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=3)
    assert trainer.output(job).splitlines()[-1] == "tidied"


def test_a_script_that_leaves_at_sigterm_is_paused_at_its_boundary_all_the_same(trainer: Trainer) -> None:
    job = trainer.assign(trains(before="signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))"))
    trainer.running(job, step=3)
    trainer.store.pause(job.id)
    is_paused_without_loss(trainer, job, after_step=3)


def test_a_script_that_ends_by_itself_before_it_hears_of_its_pause_has_succeeded(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=f"{STANDS}\n        break"), stall_limit_s=NO_LIMIT)
    trainer.says(job, "long")
    asked_to_pause(trainer, job)
    go(trainer, job)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.detail, outcome.last_step) == (Reason.SUCCEEDED, "finished", 4)


def test_one_that_is_killed_while_it_is_to_pause_has_not_paused(trainer: Trainer) -> None:
    job = trainer.assign(trains(within="if step == 5: print('long', flush=True); time.sleep(600)"))
    pid = trainer.running(job, step=4)
    trainer.says(job, "long")
    asked_to_pause(trainer, job)
    kill(pid)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.signal) == (Reason.KILLED, "SIGKILL")


def test_a_time_limit_does_not_cut_off_a_checkpoint_that_is_being_written(trainer: Trainer) -> None:
    job = trainer.assign(trains(within=f"slow.seconds = {LONG_S}"), attempt_timeout_s=3.0)
    outcome = trainer.ended(job)
    assert outcome.reason is Reason.TIMEOUT  # its grace is over by then, so it may be killed on its way out
    saved = trainer.store.job(job.id).checkpoints
    assert [each.step for each in saved[:1]] == [outcome.last_step], "it was cut off in the middle of its save"


def test_a_checkpoint_that_never_ends_holds_no_time_limit_up(trainer: Trainer) -> None:
    job = trainer.assign(trains(within="slow.seconds = 600"), attempt_timeout_s=3.0)
    outcome = trainer.ended(job)
    assert (outcome.reason, outcome.signal) == (Reason.TIMEOUT, "SIGKILL")
