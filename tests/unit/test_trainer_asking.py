"""What a training process was asked tells why it left, and how long it may stay."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trackside import logs
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.models import Reason
from trackside.sdk.page import Command, ControlPage, Phase
from trackside.store import Store
from trackside.testing import wait_until
from trackside_trainer.asking import Asking
from trackside_trainer.attempt import AttemptRun
from trackside_trainer.leftovers import Death, Leftover
from trackside_trainer.slotfiles import TakenAttempt
from trackside_trainer.watchdog import Watchdog
from worker_parts import JOB, SLOT, URL

GRACE_S, SAVE_LIMIT_S = 0.05, 600.0
LIMIT_S = 0.2  # after which it hangs


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A process, its page, and who asks it."""

    process: subprocess.Popen[bytes]
    pidfd: int
    page: ControlPage
    asking: Asking

    def exits(self) -> None:
        """It ends, and nobody has waited for it yet."""
        self.process.kill()
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)


def make(home: Path) -> Iterator[Asked]:
    process = subprocess.Popen(["sh", "-c", "trap '' TERM USR2; echo ready; exec sleep 600"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    page, pidfd = ControlPage.in_memory(), os.pidfd_open(process.pid)
    asking = Asking(Settings(home=home, stop_grace_s=GRACE_S, save_limit_s=SAVE_LIMIT_S), logs.get())
    asking.started(page, pidfd)
    yield Asked(process=process, pidfd=pidfd, page=page, asking=asking)
    process.kill()
    process.communicate()
    os.close(pidfd)


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    yield from make(tmp_path)


@pytest.fixture
def another(tmp_path: Path) -> Iterator[Asked]:
    yield from make(tmp_path)


@pytest.mark.parametrize("waited_for", [True, False])
def test_what_is_asked_after_the_end_is_not_why_it_ended(asked: Asked, waited_for: bool) -> None:
    asked.exits()
    if waited_for:
        asked.asking.ended()
    asked.asking.stop(Reason.PREEMPTED)
    assert (asked.asking.heard, asked.asking.reason, asked.page.command) == (None, None, Command.NONE)
    asked.asking.stop(Reason.FENCED)
    assert (asked.asking.heard, asked.asking.reason) == (None, Reason.FENCED)


def test_what_was_asked_before_the_end_stays_why_it_ended(asked: Asked) -> None:
    asked.asking.stop(Reason.TIMEOUT, "its limit was reached")
    asked.exits()
    asked.asking.stop(Reason.CANCELLED)
    asked.asking.ended()
    asked.asking.stop(Reason.CANCELLED)
    assert (asked.asking.heard, asked.asking.why) == (Reason.TIMEOUT, "its limit was reached")


def test_each_signal_is_told_of_on_the_page_and_a_pause_sends_none_to_a_loop(asked: Asked) -> None:
    asking, page = asked.asking, asked.page
    page.first, page.phase = 1, Phase.STEPPING
    for _ in range(2):
        asking.stop(Reason.PAUSED)
        asking.remind()
        assert (page.signalled, asking.heard) == (0, None)
        asking.take_back()
    asking.stop(Reason.PAUSED)
    page.phase = Phase.STARTING
    for _ in range(2):
        asking.remind()
        assert (page.signalled, asking.heard) == (page.asks, Reason.PAUSED)
    asking.stop(Reason.CANCELLED)
    assert (page.signalled, asking.heard) == (page.asks, Reason.CANCELLED)


def test_a_hang_may_save_yet_unless_it_is_its_checkpoint_that_hangs(asked: Asked, another: Asked) -> None:
    for each in (asked, another):
        each.page.phase = Phase.SAVING
    asked.asking.stop(Reason.STALLED)
    another.asking.stop(Reason.STALLED, saving_s=0.0)
    wait_until(another.asking.overdue, 20, "a checkpoint that hangs is waited for again")
    assert not asked.asking.overdue()
    asked.page.phase = Phase.STEPPING
    assert not asked.asking.overdue(), "it is killed on its way out"
    wait_until(asked.asking.overdue, 20, "one that has saved stays for ever")


@pytest.mark.parametrize("saving", [True, False])
def test_an_attempt_whose_checkpoint_hangs_is_ended_after_its_grace(
    tmp_path: Path, asked: Asked, another: Asked, saving: bool
) -> None:
    """One that hung in a step, and saves when it is asked to stop, is let finish that."""
    limits = Settings(
        home=tmp_path, profile="test", stall_limit_s=LIMIT_S, save_limit_s=LIMIT_S, startup_limit_s=LIMIT_S
    )
    asked.page.first, asked.page.phase = 1, Phase.SAVING if saving else Phase.STEPPING
    asked.page.boundary(1)
    with connect(URL) as client:
        run = AttemptRun(Settings(home=tmp_path), Store(client, by="worker:box-cpu0"), SLOT, JOB, seen_by="w")
    run.pid, run._asking = asked.process.pid, asked.asking
    run._watchdog = Watchdog(limits, asked.page, asked.process.pid, tmp_path / "stacks", tmp_path / "output")

    def is_asked() -> bool:
        run._keep_watch()
        return asked.asking.reason is Reason.STALLED

    wait_until(is_asked, 20, "its hang is not seen")
    asked.page.phase = another.page.phase = Phase.SAVING
    another.asking.stop(Reason.STALLED, saving_s=0.0)
    wait_until(another.asking.overdue, 20, "its grace does not end")
    assert asked.asking.overdue() is saving


HEARD = [
    ((Command.PAUSE,), False, False, Reason.SUCCEEDED),  # by the page alone
    ((Command.PAUSE,), True, False, Reason.PAUSED),
    ((Command.PAUSE,), True, True, Reason.SUCCEEDED),
    ((Command.PAUSE, Command.NONE), True, False, Reason.SUCCEEDED),
    ((Command.PREEMPT,), True, False, Reason.PREEMPTED),
]


@pytest.mark.parametrize(("commands", "signalled", "refused", "reason"), HEARD)
def test_a_dead_worker_s_attempt_is_judged_by_what_it_heard_too(
    tmp_path: Path, commands: tuple[Command, ...], signalled: bool, refused: bool, reason: Reason
) -> None:
    taken = TakenAttempt(slot="s", job="j", attempt=1, attempt_dir="/x", worker_pid=1, worker_started=1)
    with connect(URL) as client:
        store = Store(client, by="agent:box")
        left = Leftover(
            Settings(home=tmp_path), store, URL, "s1", tmp_path / "taken.json", taken, Death.seen(9), "agent:box"
        )
    left._folders.root.mkdir(parents=True)
    end = {"k": "end", "outcome": "succeeded", "early": True, "error": None}
    left._folders.journal.write_text(json.dumps(end) + "\n")
    page = ControlPage.create(left._folders.page)
    for command in commands:
        page.command = command
        if signalled:
            page.signals()
    if refused:
        page.refuse(page.asks, 0)
    assert left._judge().reason is reason
