"""The ledger gives back what was put in, whatever byte its writer died at and whoever wrote beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import makers
from full_disk import full_disk
from makers import a_checkpoint, a_job, an_attempt
from trackside.models import (
    Attempt,
    AttemptState,
    Breaker,
    BreakerState,
    Event,
    EventKind,
    Job,
    JobState,
)
from trackside_supervisor import ledger as ledger_
from trackside_supervisor.ledger import Kept, Ledger

SPEC = replace(makers.SPEC, params={"lr": 0.1}, snapshot="ab" * 32)
SLOT = replace(makers.SLOT, cordoned=True)
AWAY = replace(SLOT, id="h-gpu0", cordoned=True, cordon_reason="Xid 79")
BREAKER = Breaker(slot="h-cpu0", state=BreakerState.OPEN, failed=("a", "b"), openings=1, until_ms=9)


def job(name: str, attempt: int = 1, state: JobState = JobState.RUNNING, ended_at_ms: int | None = None) -> Job:
    ref = a_checkpoint(20, name="step-00000020-a1")
    return a_job(
        name, 1, state=state, spec=SPEC, changed_at_ms=2, attempt=attempt, slot=SLOT.id, checkpoints=(ref,),
        ended_at_ms=ended_at_ms,
    )  # fmt: skip


def attempt(name: str, number: int, state: AttemptState = AttemptState.RUNNING) -> Attempt:
    return an_attempt(number, job=name, state=state, assigned_at_ms=1)


def kept(name: str, events: range, number: int = 1) -> Kept:
    told = [(f"{at}-0", Event(kind=EventKind.NOTE, at_ms=at, job=name, cause=f"{name} {at}")) for at in events]
    return Kept(job=job(name, number), attempts={number: attempt(name, number)}, history=told)


def content(found: Ledger) -> object:
    return found.jobs, found.slots, found.away, found.breakers, found.cursor


def filled(folder: Path) -> Ledger:
    found = Ledger.open(folder)
    found.append([kept("one", range(1, 4))], cursor="3-0")
    found.append([kept("two", range(4, 6))], slots=(SLOT,), away=(AWAY,), breakers=(BREAKER,), cursor="5-0")
    found.append([kept("one", range(6, 8), number=2)], cursor="7-0")
    return found


def test_what_was_put_in_comes_back_whether_closed_or_not(tmp_path: Path) -> None:
    before = content(filled(tmp_path))
    assert content(Ledger.open(tmp_path)) == before
    assert content(Ledger.open(tmp_path)) == before
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_a_writer_that_died_at_any_byte_leaves_what_it_had_finished(tmp_path: Path) -> None:
    filled(tmp_path / "whole").close()
    (path,) = (tmp_path / "whole").glob("*.jsonl")
    data = path.read_bytes()
    claimed: list[str | None] = []
    last_line = len(data) - data[:-1].rfind(b"\n")
    for cut in (*range(0, len(data) - last_line, 29), *range(len(data) - last_line, len(data) + 1)):
        folder = tmp_path / "cut"
        folder.mkdir()
        (folder / "1-1.jsonl").write_bytes(data[:cut])
        found = Ledger.open(folder)
        told = [entry for each in found.jobs.values() for entry, _ in each.history]
        if found.cursor is not None:
            newest = int(found.cursor.partition("-")[0])
            assert {f"{at}-0" for at in range(1, newest + 1)} <= set(told), f"cut at {cut}: it claims more than it has"
        claimed.append(found.cursor)
        found.close()
        for file in (*folder.glob("snapshots"), *folder.iterdir()):
            file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        folder.rmdir()
    assert {None, "3-0", "5-0", "7-0"} <= set(claimed)


@pytest.mark.parametrize(
    "line", [b"\x00\xff\n", b"[]\n", b'{"k":"job","r":{}}\n', b'{"k":"at","id":"x"}\n', b'{"k":5}\n']
)
def test_a_line_that_is_none_of_ours_is_passed_over(tmp_path: Path, line: bytes) -> None:
    before = content(filled(tmp_path))
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], line, *lines[1:]]))
    assert content(Ledger.open(tmp_path)) == before


def test_a_frozen_leader_that_wakes_harms_nothing(tmp_path: Path) -> None:
    old = filled(tmp_path)
    new = Ledger.open(tmp_path)
    new.append([kept("one", range(8, 10), number=3)], cursor="9-0")
    old.append([kept("one", range(8, 9), number=2)], cursor="8-0")
    found = Ledger.open(tmp_path)
    assert found.cursor == "9-0"
    assert found.jobs["one"].job.attempt == 3
    assert [entry for entry, _ in found.jobs["one"].history] == [f"{at}-0" for at in (1, 2, 3, 6, 7, 8, 9)]


def test_a_writer_whose_file_another_has_put_together_goes_on_in_a_new_one(tmp_path: Path) -> None:
    old = filled(tmp_path)
    Ledger.open(tmp_path).close()
    old.append([kept("one", range(8, 9), number=2)], cursor="8-0")
    assert Ledger.open(tmp_path).cursor == "8-0"


def test_it_is_bounded_in_size_and_in_jobs_that_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_, "_GROWN_BYTES", 20_000)
    monkeypatch.setattr(ledger_, "ENDED_KEPT", 3)
    found = Ledger.open(tmp_path)
    for number in range(10):
        ended = job(f"ended-{number}", state=JobState.SUCCEEDED, ended_at_ms=number)
        found.append([Kept(job=ended)])
    one = kept("live", range(1, 2))
    for at in range(1000):
        found.append([replace_job(one, at)], cursor=f"{at + 10}-0")
        (path,) = tmp_path.glob("*.jsonl")
        assert path.stat().st_size < 25_000
    again = Ledger.open(tmp_path)
    assert sorted(again.jobs) == ["ended-7", "ended-8", "ended-9", "live"]
    assert again.jobs["live"].job.ran_ms == 999
    assert again.cursor == "1009-0"


def replace_job(one: Kept, ran_ms: int) -> Kept:
    return Kept(job=replace(one.job, ran_ms=ran_ms), attempts=one.attempts, history=one.history)


def test_snapshots_are_kept_as_long_as_a_job_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = filled(tmp_path)
    assert SPEC.snapshot is not None
    found.keep_snapshot(SPEC.snapshot, b"archive")
    found.keep_snapshot("cd" * 32, b"of nobody")
    again = Ledger.open(tmp_path)
    assert again.snapshot(SPEC.snapshot) == b"archive"
    assert not again.has_snapshot("cd" * 32)


def test_the_first_attempt_that_may_change_is_the_first_not_ended() -> None:
    ended = {number: attempt("j", number, AttemptState.ENDED) for number in (1, 2)}
    assert Kept(job=job("j", 4), attempts={**ended, 4: attempt("j", 4)}).first_open == 3
    assert Kept(job=job("j", 2), attempts=ended).first_open == 3
    assert Kept(job=job("j", 1)).first_open == 1


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    filled(tmp_path)
    (path,) = tmp_path.glob("*.jsonl")
    assert path.stat().st_mode & 0o077 == 0


def test_a_disk_that_does_not_take_it_is_not_filled_by_trying_again(tmp_path: Path) -> None:
    before = content(filled(tmp_path))
    files = sorted(tmp_path.rglob("*"))
    for _ in range(3):
        with full_disk(300), pytest.raises(OSError, match="File too large"):
            Ledger.open(tmp_path)
        assert sorted(tmp_path.rglob("*")) == files
    found = Ledger.open(tmp_path)
    assert content(found) == before
    files = sorted(tmp_path.rglob("*"))
    with full_disk(300), pytest.raises(OSError, match="File too large"):
        found.keep_snapshot("ab" * 32, b"x" * 1000)
    assert sorted(tmp_path.rglob("*")) == files


def test_what_a_writer_left_that_was_killed_at_it_is_removed(tmp_path: Path) -> None:
    before = content(filled(tmp_path))
    (tmp_path / "7-7.tmp").write_text("half a l")
    assert content(Ledger.open(tmp_path)) == before
    assert list(tmp_path.glob("*.tmp")) == []
