"""Each cause of an attempt's end, on a real trainer: the reason it is given, the words for it, and what is kept.

Hangs have tests of their own (`test_trainer_hang.py`), and so have dead workers, agents and hosts
(`test_trainer_survival.py`).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from trackside.bus.client import now_ms
from trackside.models import AttemptState, Job, Program, Reason
from trackside.server import EmbeddedServer
from trackside.testing import wait_until
from trackside_trainer import stuck
from trackside_trainer.ending import loader_was_killed
from trackside_trainer.shipping import end_record
from trainer_harness import Trainer, kill, steps_script, trainer_on

OUTPUT: Final = "last output:\n"


@pytest.fixture(scope="module")
def trainer(redis_server: EmbeddedServer) -> Iterator[Trainer]:
    with trainer_on(redis_server, stop_grace_s=5, restart_intensity=50) as trainer:
        yield trainer


def nothing(trainer: Trainer, job: Job) -> None:
    """The script ends by itself, or its limit ends it."""


def cancel(trainer: Trainer, job: Job) -> None:
    trainer.says(job, "ready")
    trainer.store.cancel(job.id)


def pause(trainer: Trainer, job: Job) -> None:
    trainer.says(job, "ready")
    trainer.store.pause(job.id)


def preempt(trainer: Trainer, job: Job) -> None:
    """Its worker is asked to stop, as at every orderly stop of a host."""
    trainer.says(job, "ready")
    os.kill(trainer.worker_pid(), signal.SIGTERM)


def kill_training(trainer: Trainer, job: Job) -> None:
    kill(trainer.running(job, step=30))


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """A script, what is done to it, and how its attempt must end."""

    script: str
    reason: Reason
    says: str  # a pattern for the whole detail
    kept: tuple[str, ...] = (OUTPUT,)  # patterns for how the pieces of evidence begin
    error: str | None = None  # the class of the failure that is told
    exit_code: int | None = None
    signal: str | None = None
    act: Callable[[Trainer, Job], None] = nothing
    spec: Mapping[str, Any] = field(default_factory=dict)


# Scripts that know nothing of us and stop in the way that people write it.
HANDLES: Final = """
import signal, sys, time
def stop(number, frame):
    print("saving", flush=True)
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""
LEAVES_ITS_LOOP: Final = """
import signal, time
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
print("ready", flush=True)
while not stopping:
    time.sleep(0.01)
print("saved")
"""
SLEEPS: Final = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"
# One that uses us, and takes SIGTERM for itself.
HANDLES_IN_ITS_LOOP: Final = """
import collections, signal, sys, time, trackside
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Model(collections.UserDict):
    state_dict, load_state_dict = dict, collections.UserDict.update
run = trackside.init()
run.checkpointer(model=Model(weight=1.0))
for step in run.steps(100_000):
    if step == 3:
        print("ready", flush=True)
    time.sleep(0.01)
"""
DIVERGES: Final = """
import trackside
run = trackside.init()
for step in run.steps(50):
    run.log(loss=float("nan") if step > 5 else 1.0)
"""
BY_ITSELF: Final = "it ended by itself, before its end as far as is known"
OVER: Final = r"the job's time limit of 0\.7 s was reached"
OVER_LATER: Final = r"the job's time limit of 2 s was reached"  # where the script must have set its handler by then
START_OVER: Final = r"stopped after [\d.]+ s; no steps are known of it: the next attempt starts over"

CAUSES: Final[Mapping[str, Cause]] = {
    "an exception": Cause(
        script="print('before')\nraise ValueError('learning rate is negative')\n",
        reason=Reason.USER_ERROR, says="ValueError: learning rate is negative", error="ValueError", exit_code=1,
    ),
    "an exit code": Cause(
        script="import sys\nprint('before')\nsys.exit(3)\n",
        reason=Reason.USER_ERROR, says="SystemExit: the program exited with code 3", error="SystemExit", exit_code=3,
    ),
    "an exit code without an end": Cause(
        script="import os\nprint('before', flush=True)\nos._exit(3)\n",
        reason=Reason.USER_ERROR, says="exited with code 3 without finishing: its output tells more", exit_code=3,
    ),
    "exit code 0 without an end": Cause(
        script="import os\nprint('before', flush=True)\nos._exit(0)\n", kept=(),
        reason=Reason.USER_ERROR, says="exited 0 without finishing: .*; let it return", exit_code=0,
    ),
    "a crash in native code": Cause(
        script="import ctypes, trackside\nprint('about to crash')\nctypes.string_at(0)\n",
        reason=Reason.KILLED, says=r"the training process was killed \(SIGSEGV\), a crash in native code",
        kept=(r'Fatal Python error: Segmentation fault.*train\.py", line 3', f"{OUTPUT}about to crash$"),
        signal="SIGSEGV",
    ),
    "a kill from outside": Cause(
        script=steps_script(100_000, 0.01), act=kill_training,
        reason=Reason.KILLED, says=r"the training process was killed \(SIGKILL\), not by Trackside: .* by whom",
        kept=(rf"{OUTPUT}(step \d+\n){{19}}step \d+$",), signal="SIGKILL",
    ),
    "no memory": Cause(
        script="print('before')\nraise MemoryError('no 40 GiB left')\n",
        reason=Reason.OOM_HOST, says="MemoryError: no 40 GiB left", error="MemoryError", exit_code=1,
    ),
    "a loss that is no number": Cause(
        script=DIVERGES, reason=Reason.DIVERGED, says="Diverged: .*loss.*", error="Diverged", exit_code=1,
    ),
    "a program that is not there": Cause(
        script="", spec={"program": Program(kind="script", target="other.py")},
        reason=Reason.INVALID_JOB, says="other.py is not in the job.s folder: submit .*",
        error="trackside.errors.InvalidJob",
        exit_code=1,
    ),
    "an interpreter that is not there": Cause(
        script="", spec={"python": "/nowhere/python"}, kept=(),
        reason=Reason.INVALID_JOB, says="/nowhere/python is no interpreter on this host: .*", error="InvalidJob",
    ),
    "a time limit": Cause(
        script=steps_script(100_000, 0.01), spec={"timeout_s": 0.7},
        reason=Reason.TIMEOUT, says=OVER, exit_code=75,
    ),
    "a time limit of a script that knows nothing of us": Cause(
        script=SLEEPS, spec={"timeout_s": 0.7}, reason=Reason.TIMEOUT, says=OVER, exit_code=75,
    ),
    "a time limit of one that exits 0 then": Cause(
        script=HANDLES.format(code=0), spec={"timeout_s": 2.0},
        reason=Reason.TIMEOUT, says=f"{OVER_LATER}; {BY_ITSELF}", exit_code=0,
    ),
    "a time limit of one that exits 143 then": Cause(
        script=HANDLES.format(code=143), spec={"timeout_s": 2.0},
        reason=Reason.TIMEOUT, says=OVER_LATER, exit_code=143,
    ),
    "a cancel": Cause(script=SLEEPS, act=cancel, reason=Reason.CANCELLED, says="stopped as asked", exit_code=75),
    "a cancel of one that exits 0 then": Cause(
        script=HANDLES.format(code=0), act=cancel,
        reason=Reason.CANCELLED, says=f"asked to stop; {BY_ITSELF}", exit_code=0,
    ),
    "a stop of the host": Cause(
        script=SLEEPS, act=preempt, reason=Reason.PREEMPTED, says=START_OVER, exit_code=75,
    ),
    "a stop of the host, and it exits 0 then": Cause(
        script=HANDLES.format(code=0), act=preempt, reason=Reason.PREEMPTED, says=START_OVER, exit_code=0,
    ),
    "a stop of the host, and it leaves its loop then": Cause(
        script=LEAVES_ITS_LOOP, act=preempt, reason=Reason.PREEMPTED, says=START_OVER, exit_code=0,
    ),
    "a stop of the host in the middle of steps, and it exits 0 then": Cause(
        script=HANDLES_IN_ITS_LOOP, act=preempt,
        reason=Reason.PREEMPTED, says=f"asked to make room; {BY_ITSELF}", exit_code=0,
    ),
    "a pause of one that would exit 0 at a signal": Cause(  # its loop is told without one
        script=HANDLES_IN_ITS_LOOP, act=pause,
        reason=Reason.PAUSED, says="paused at a step boundary", exit_code=75,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_an_end_has_its_reason_its_words_and_its_evidence(name: str, trainer: Trainer) -> None:
    cause = CAUSES[name]
    job = trainer.assign(cause.script, **cause.spec)
    worker = trainer.worker_pid()
    cause.act(trainer, job)

    outcome = trainer.ended(job, 20)

    assert (outcome.reason, outcome.exit_code, outcome.signal) == (cause.reason, cause.exit_code, cause.signal)
    assert re.fullmatch(cause.says, outcome.detail or ""), outcome.detail
    for text, begins in zip(outcome.evidence, cause.kept, strict=True):
        assert re.match(begins, text, re.DOTALL), text
    assert (outcome.failure.type if outcome.failure is not None else None) == cause.error
    if cause.act is preempt:
        wait_until(lambda: trainer.worker_pid() != worker, 10, "no new worker")


def test_a_traceback_leads_to_the_line_in_the_script(trainer: Trainer) -> None:
    job = trainer.assign(CAUSES["an exception"].script)
    outcome = trainer.ended(job)
    assert outcome.failure is not None
    assert 'train.py", line 2' in (outcome.failure.traceback or "")
    assert trainer.output(job).startswith("before\nTraceback")


LOADS: Final = """
import os, signal, torch, trackside

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, at):
        if at == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return at

for step, batch in zip(trackside.init().steps(100), torch.utils.data.DataLoader(Data(), num_workers=1)):
    pass
"""


def test_a_data_loader_that_was_killed_is_known_by_what_torch_says_of_it(trainer: Trainer) -> None:
    """Nothing killed it for memory here, so the error stays the reason; what torch says is read from the real thing."""
    job = trainer.assign(LOADS)
    outcome = trainer.ended(job, 30)
    journal = trainer.home / "jobs" / job.id / "attempts" / "1" / "journal.jsonl"
    assert outcome.reason is Reason.USER_ERROR
    assert loader_was_killed(end_record(journal))


def test_a_script_that_is_asked_to_stop_when_it_is_done_anyway_has_succeeded(trainer: Trainer) -> None:
    """It heeds no SIGTERM and comes to its end within the grace."""
    script = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\n"
    job = trainer.assign(script + "time.sleep(1)\nprint('done')\n")
    worker = trainer.worker_pid()
    preempt(trainer, job)
    assert trainer.ended(job, 20).reason is Reason.SUCCEEDED
    wait_until(lambda: trainer.worker_pid() != worker, 10, "no new worker")


def test_a_slot_takes_no_work_while_an_earlier_attempt_s_process_cannot_be_ended(trainer: Trainer) -> None:
    """One that merely lives stands for it, since no test can make one that hangs in the kernel."""
    hanging = subprocess.Popen(["sleep", "600"])
    try:
        stuck.note(trainer.home, "box-cpu0", [hanging.pid])
        wait_until(
            lambda: (beat := trainer.beat()) and f"(pid {hanging.pid})" in (beat.blocked or ""), 10, "it is not told"
        )
        job = trainer.assign(steps_script(3))
        given_ms = now_ms(trainer.client)
        wait_until(lambda: (beat := trainer.beat()) and beat.at_ms > given_ms + 1000, 10, "the worker stands still")
        assert trainer.attempt(job).state is AttemptState.ASSIGNED
    finally:
        hanging.kill()
        hanging.wait()
    assert trainer.ended(job).reason is Reason.SUCCEEDED
    beat = wait_until(trainer.beat, 10, "no worker beats")
    assert beat is not None
    assert beat.blocked is None
