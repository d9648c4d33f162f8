"""The witness sees what the oracle judges by: who outlives an attempt, what changes that may not, what is missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from makers import SLOT, SPEC, a_checkpoint
from store_world import moved
from trackside import witness
from trackside.bus import beats
from trackside.bus.client import connect
from trackside.cli.remembering import RememberingStore
from trackside.errors import IllegalTransition, NotFound
from trackside.models import Beat, CheckpointRef, JobState, Outcome, Reason, Role
from trackside.oracle import History, verdict
from trackside.sdk.checkpoints import CheckpointStore
from trackside.sdk.context import ENVIRONMENT
from trackside.store import Store
from trackside.testing import wait_until

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> Store:
    return Store(connect(bus_urls["supervisor"]), by="supervisor:test")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process that ends with the test."""
    with ExitStack() as stack:

        def run(*words: str, **how: object) -> subprocess.Popen[bytes]:
            process: subprocess.Popen[bytes] = subprocess.Popen(words, **how)  # type: ignore[call-overload]  # passed through
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield run


def folder_of(home: Path, number: int = 1) -> Path:
    folder = home / "jobs" / "j" / "attempts" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begun(store: Store, home: Path, number: int = 1) -> Path:
    """A job whose attempt has begun; returns the attempt's folder."""
    if number == 1:
        store.submit("j", "j", SPEC)
    store.assign("j", SLOT, lambda _, __: None)
    store.claim("j", number, worker_pid=10)
    folder = folder_of(home, number)
    (folder / "journal.jsonl").write_text('{"k":"begin"}\n')
    return folder


def over(store: Store, number: int = 1) -> None:
    store.end_attempt("j", number, Outcome(reason=Reason.KILLED))
    moved(store, "j", JobState.QUEUED)


def accept(store: Store, home: Path, step: int) -> CheckpointRef:
    written = CheckpointStore(home / "jobs" / "j" / "checkpoints", 1).write(step, {"a": lambda out: out.write(b"a")})
    ref = a_checkpoint(step, name=written.name, digest=written.digest)
    store.accept_checkpoint("j", 1, ref)
    return ref


def broken(store: Store, seen: witness.Observer) -> set[str | None]:
    """The rules that what was seen breaks, of those about what is seen."""
    history = witness.read(store, ["j"], samples=tuple(seen.samples), orphans=tuple(seen.orphans), over=False)
    jobs = tuple(each for each in history.jobs)
    found = verdict(History(submitted=("j",), jobs=jobs, samples=history.samples, orphans=history.orphans, over=False))
    return {violation.rule for violation in found.violations if violation.invariant in ("I3", "I6", "I11")}


@pytest.mark.parametrize("trace", ["environment", "output", "folder", "session"])
def test_a_process_that_went_elsewhere_is_still_known(trace: str, fresh_home: Path, start: Start) -> None:
    folder = folder_of(fresh_home)
    how: dict[str, object] = {"cwd": "/", "env": {"PATH": os.defpath}, "start_new_session": True}
    words: tuple[str, ...] = ("sleep", "60")
    with (folder / "output.log").open("wb") as output:
        match trace:
            case "environment":
                how["env"] = {ENVIRONMENT: str(folder / "attempt.json"), "PATH": os.defpath}
            case "output":
                how["stdout"] = output
            case "folder":
                how["cwd"] = folder
            case "session":
                how["cwd"] = folder
                words = ("sh", "-c", "(cd / && exec sleep 60) & wait")
        process = start(*words, **how)
    stranger = start("sleep", "60", cwd="/")
    wait_until(lambda: witness.processes(fresh_home).get(process.pid) == ("j", 1), 10.0, "it is not known")
    if trace == "session":

        def left() -> list[int]:
            children = witness.processes(fresh_home).keys() - {process.pid}
            return [pid for pid in children if Path(f"/proc/{pid}/cwd").readlink() == Path("/")]

        (child,) = wait_until(left, 10.0, "its child, which has left the folder, is not known")
        os.kill(child, 9)
    assert stranger.pid not in witness.processes(fresh_home)


def test_who_outlives_an_attempt_is_told_once_its_worker_can_know(store: Store, fresh_home: Path, start: Start) -> None:
    folder = begun(store, fresh_home)
    process = start("sleep", "60", cwd=folder)
    wait_until(lambda: process.pid in witness.processes(fresh_home), 10.0, "it is not known")
    assert witness.orphans(store, fresh_home) == {}
    over(store)
    assert process.pid in witness.orphans(store, fresh_home)
    assert witness.orphans(store, fresh_home, of_silent=False) == {}
    beat = Beat(
        role=Role.WORKER, name="h-cpu0", host="h", pid=os.getpid(), started_at_ms=0, at_ms=0, slot="h-cpu0", job="k"
    )
    beats.publish(store.client, beat, 60.0)
    assert process.pid in witness.orphans(store, fresh_home, of_silent=False)


def test_what_an_idle_worker_has_below_it_is_told(store: Store, fresh_home: Path, start: Start) -> None:
    worker = start("sh", "-c", "sleep 60 & wait", cwd="/")
    beat = Beat(role=Role.WORKER, name="h-cpu0", host="h", pid=worker.pid, started_at_ms=0, at_ms=0, slot="h-cpu0")
    beats.publish(store.client, beat, 60.0)
    (left,) = wait_until(lambda: list(witness.orphans(store, fresh_home)), 10.0, "nothing is told")
    assert left != worker.pid
    os.kill(left, 9)


def test_an_attempt_s_files_are_closed_when_it_is_gone(store: Store, fresh_home: Path) -> None:
    folder = begun(store, fresh_home)
    seen = witness.Observer(store=store, home=fresh_home, job_ids=["j"])
    seen.look()
    over(store)
    begun(store, fresh_home, 2)
    seen.look()
    assert [each.closed for each in seen.samples if each.closed] == [{"j": {1: 14}}]
    assert [each.entries for each in seen.samples if each.entries] == [{"j": {1: 1}}, {"j": {1: 1, 2: 1}}]
    with (folder / "journal.jsonl").open("a") as file:
        file.write("more\n")
    again = witness.Observer(store=store, home=fresh_home, job_ids=["j"])
    again.look()
    seen.samples += again.samples
    assert broken(store, seen) == {"I3 closed files do not change"}


def test_the_checkpoint_that_the_record_points_to_is_looked_for_each_time(store: Store, fresh_home: Path) -> None:
    begun(store, fresh_home)
    ref = accept(store, fresh_home, 1)
    seen = witness.Observer(store=store, home=fresh_home, job_ids=["j"])
    seen.look()
    assert [(proof.name, proof.there) for each in seen.samples for proof in each.newest.values()] == [(ref.name, True)]
    assert broken(store, seen) == set()
    (fresh_home / "jobs" / "j" / "checkpoints" / ref.name).rename(fresh_home / "elsewhere")
    seen.look()
    assert broken(store, seen) == {"I6 the newest one at every look"}


def test_a_look_that_finds_no_server_is_counted_and_changes_nothing(fresh_home: Path) -> None:
    nobody = Store(connect(f"unix://{fresh_home}/nobody.sock"), by="supervisor:test")
    seen = witness.Observer(store=nobody, home=fresh_home, job_ids=["j"])
    assert seen.look() is None
    assert (seen.blind, seen.looks, seen.samples) == (1, 0, [])


def test_an_observer_s_own_error_is_raised_where_its_block_ends(store: Store, fresh_home: Path) -> None:
    begun(store, fresh_home)

    def fails() -> int:
        raise ZeroDivisionError

    def look_on() -> None:
        with witness.observed(store, fresh_home, ["j"], every_s=0.01) as seen:
            seen.clock_ms = fails
            wait_until(lambda: not seen.looking, 10.0, "it goes on")

    with pytest.raises(ZeroDivisionError):
        look_on()


def test_what_is_held_is_counted(store: Store, fresh_home: Path, start: Start) -> None:
    begun(store, fresh_home)
    checkpoints = fresh_home / "jobs" / "j" / "checkpoints"
    for name in ("damaged-step-00000001-a1", ".step-00000002-a1.tmp-5"):
        (checkpoints / name).mkdir(parents=True)
    process = start("sleep", "60")
    beat = Beat(
        role=Role.LAUNCHER,
        name="h",
        host="h",
        pid=os.getpid(),
        started_at_ms=0,
        at_ms=0,
        children={"redis": process.pid},
    )
    beats.publish(store.client, beat, 60.0)
    held = witness.holdings(store, fresh_home, ["j"], 5)
    assert held.damaged == {"j": 1}
    assert held.unfinished == {}  # it has not ended well
    assert held.usage.keys() == {"launcher", "redis"}
    assert held.usage["redis"].fds >= 3
    assert held.usage["launcher"].rss_mib > 1
    assert held.streams["ts:metrics:j"] == (1, 200_000)


def test_what_is_asked_is_written_down_with_its_answer(bus_urls: Mapping[str, str]) -> None:
    remembering = RememberingStore(connect(bus_urls["submitter"]), by="cli:test")
    remembering.submit("j", "j", SPEC)
    remembering.cancel("j")
    with pytest.raises(IllegalTransition):
        remembering.pause("j")
    with pytest.raises(NotFound):
        remembering.resume("nobody")
    assert [(each.what, each.job, each.error is None) for each in remembering.operations] == [
        ("submit", "j", True), ("cancel", "j", True), ("pause", "j", False), ("resume", "nobody", False),
    ]  # fmt: skip
    history = witness.read(remembering, ["j"], operations=remembering.of(["j"]))
    assert len(history.operations or ()) == 3
    said = verdict(history)
    assert said.violations == ()
    assert "I16 what was acknowledged is done" in said.judged
    unasked = witness.read(remembering, ["j"], operations=())
    assert [violation.rule for violation in verdict(unasked).violations] == ["I16 what was acknowledged is done"]
