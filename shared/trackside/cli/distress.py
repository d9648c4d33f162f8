"""A training's own hang and full disk, brought about from outside, so that no script needs a change."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from trackside.cli.scene import Harm, Scene, is_gone
from trackside.cli.throwaway import TooLate, now_ms
from trackside.models import EventKind, JobState
from trackside.processes import alive, look, start_time
from trackside.sdk.page import ControlPage, Phase
from trackside.testing import wait_until

NOT_WRITTEN: Final = "was not written"  # in the note of a checkpoint that the disk did not take
_HOLD_EVERY_S: Final = 0.002


def hang(scene: Scene) -> Harm:
    """The training stands still for good, which is one kind of hang: stopped, and again whenever it is let go on.

    So neither its own code nor a handler of signals gets to run for long, and only SIGKILL ends it.
    """
    pid = stop_in_a_step(scene)
    started = start_time(pid)
    harm = Harm(at_ms=now_ms())
    deadline_s = time.monotonic() + scene.patience_s
    while alive(pid, started):
        if time.monotonic() > deadline_s:
            harm.broken.append(scene.breaks("I9", f"a training that hangs was not ended in {scene.patience_s:.0f} s"))
            break
        _signal(pid, signal.SIGSTOP)
        time.sleep(_HOLD_EVERY_S)
    if alive(pid, started):
        _signal(pid, signal.SIGCONT)
    return harm


def stop_in_a_step(scene: Scene) -> int:
    """Stop the training, and see that it stands in a step; returns its pid.

    A save has a limit of its own, which is not shortened here: a disk may be slow. Before and after the loop there is
    none, or one of hours.
    """
    beat = scene.worker()
    pid, number = beat.attempt_pid or 0, beat.attempt or 0
    folder = scene.system.home / "jobs" / scene.job / "attempts" / str(number)
    page = ControlPage.open(folder / "page")
    try:
        wait_until(lambda: _stopped_in_a_step(pid, page), scene.patience_s, "the training was never seen in a step")
    finally:
        page.close()
    return pid


def fill_disk(scene: Scene) -> Harm:
    """The next checkpoint does not fit on the disk; then there is room again."""
    beat = scene.worker()
    pid = beat.attempt_pid or 0
    size = wait_until(lambda: newest_checkpoint_bytes(scene.system.home, scene.job), scene.patience_s, "no checkpoint")
    harm = Harm(at_ms=now_ms())
    failed = 0
    try:
        with files_at_most(pid, room_bytes(size)):
            _await(scene, lambda: _not_written(scene, harm.at_ms), "nothing tells of a full disk")
            failed = now_ms()
        _await(scene, lambda: _accepted(scene, failed), "no checkpoint came after the disk had room")
    except AssertionError as error:
        harm.broken.append(scene.breaks("I6", str(error)))
    except ProcessLookupError as error:
        raise TooLate(f"{scene.job} was over before its disk was full: give the script more steps") from error
    return harm


def room_bytes(checkpoint_bytes: int) -> int:
    """How large a file may be while the disk is full, where a checkpoint's largest file has that size."""
    return checkpoint_bytes * 3 // 4


def newest_checkpoint_bytes(home: Path, job_id: str) -> int:
    """The size of the largest file of the newest checkpoint on the disk, 0 where there is none."""
    found = [path for path in (home / "jobs" / job_id / "checkpoints").glob("step-*") if path.is_dir()]
    if not found:
        return 0
    with suppress(FileNotFoundError):  # pruned while we looked
        return max(path.stat().st_size for path in max(found, key=lambda path: path.name).iterdir())
    return 0


def own_bytes(home: Path, job_id: str, since_ms: int) -> int:
    """The size of the largest other file that the job's first attempt has written since then."""
    sizes = [0]
    for path in (home / "jobs" / job_id / "attempts" / "1").rglob("*"):
        with suppress(OSError):
            facts = path.lstat()
            if path.is_file() and facts.st_mtime * 1000 >= since_ms:
                sizes.append(facts.st_size)
    return max(sizes)


@contextmanager
def files_at_most(pid: int, limit_bytes: int) -> Iterator[None]:
    """A process writes no file beyond that size until the block ends."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def _stopped_in_a_step(pid: int, page: ControlPage) -> bool:
    _signal(pid, signal.SIGSTOP)
    wait_until(lambda: is_gone(pid) or _stands(pid), 5.0, "the training does not stop")
    if is_gone(pid):
        raise TooLate("the training was over before it could hang: give the script more steps")
    if page.phase is Phase.STEPPING:
        return True
    _signal(pid, signal.SIGCONT)
    return False


def _stands(pid: int) -> bool:
    found = look(pid)
    return found is not None and found.state == "T"


def _await(scene: Scene, condition: Callable[[], bool], message: str) -> None:
    """Wait for something that the run brings about; raises TooLate where it was done before that."""

    def come_or_over() -> bool:
        state = scene.system.job(scene.job).state  # asked first: what it told, it told before its end
        if condition():
            return True
        if state is JobState.SUCCEEDED:
            raise TooLate(f"{message} before {scene.job} was over: give the script more steps")
        if state.terminal:
            raise AssertionError(f"{message} before {scene.job} {state}")
        return False

    wait_until(come_or_over, scene.patience_s, message)


def _not_written(scene: Scene, since_ms: int) -> bool:
    notes = (event for event in scene.events() if event.kind is EventKind.NOTE and event.at_ms >= since_ms)
    return any(NOT_WRITTEN in str(event.data.get("text")) for event in notes)


def _accepted(scene: Scene, since_ms: int) -> bool:
    return any(event.kind is EventKind.CHECKPOINT and event.at_ms >= since_ms for event in scene.events())


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
