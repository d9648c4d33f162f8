"""A file is there as a whole or not at all, and whoever could not write it leaves nothing beside it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from attempts import context
from full_disk import full_disk
from trackside import secretfiles, storage
from trackside.sdk.page import ControlPage
from trackside.store import Store
from trackside.wholefile import left_in, replacing, write_whole
from trackside_supervisor.ledger import Ledger
from trackside_trainer import folders, slots, stuck
from trackside_trainer.slotfiles import TakenAttempt

TAKEN = TakenAttempt(slot="s", job="j", attempt=1, attempt_dir="/x", worker_pid=1, worker_started=1)
ARCHIVE = b"x" * 1000


class Shelf:
    """Stands for a bus that has every snapshot."""

    def snapshot(self, _sha256: str) -> bytes:
        return ARCHIVE


def keep_snapshot(folder: Path) -> None:
    Ledger(folder).keep_snapshot("ab", ARCHIVE)


def write_page(folder: Path) -> None:
    ControlPage.create(folder / "page").close()


PLACES: dict[str, Callable[[Path], Any]] = {
    "a secret": lambda folder: secretfiles.write_private(folder / "password", "x" * 40),
    "a control page": write_page,
    "an attempt": lambda folder: context(folder).to_file(folder / "attempt.json"),
    "a taken attempt": lambda folder: TAKEN.write(folder / "taken.json"),
    "the GPUs": lambda folder: slots.numbered(folder, [{"uuid": "GPU-a", "name": "A"}]),
    "who is stuck": lambda folder: stuck.note(folder, "box-cpu0", [os.getpid()]),
    "a snapshot of the host": lambda folder: folders._snapshot(folder, cast(Store, Shelf()), "ab"),
    "a snapshot of the ledger": keep_snapshot,
    "the data folder's id": storage.identity,
}


def there(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def set_umask() -> Iterator[Callable[[int], object]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_full_disk_keeps_what_was_there_and_gets_nothing_more(tmp_path: Path, place: Callable[[Path], Any]) -> None:
    def on_a_full_disk() -> None:
        with full_disk(10), capture_logs(), suppress(OSError):
            place(tmp_path)

    (tmp_path / "snapshots").mkdir()
    on_a_full_disk()
    assert there(tmp_path) == {}
    place(tmp_path)
    before = there(tmp_path)
    assert before
    on_a_full_disk()
    assert there(tmp_path) == before


def test_whoever_reads_meanwhile_has_the_old_content_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_whole(path, b"old")
    with path.open("rb") as reader:
        write_whole(path, b"new")
        assert reader.read() == b"old"
    assert there(tmp_path) == {path: b"new"}


def test_a_name_that_cannot_be_taken_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "f", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_who_is_interrupted_in_the_making_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with suppress(KeyboardInterrupt), replacing(tmp_path / "f") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert there(tmp_path) == {tmp_path / "f": b"old"}


def test_two_writers_whose_pids_are_alike_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with replacing(path) as first:
        first.write_text("first")
        write_whole(path, b"second")
        assert there(tmp_path) == {first: b"first", path: b"second"}
    assert there(tmp_path) == {path: b"first"}


def test_a_link_is_replaced_like_a_file(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for target in ("a", "b"):
        with replacing(link) as aside:
            aside.symlink_to(target)
        assert link.readlink() == Path(target)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_umask_decides_only_where_no_mode_is_given(tmp_path: Path, set_umask: Callable[[int], object]) -> None:
    set_umask(0o027)
    write_whole(tmp_path / "plain", b"")
    assert mode_of(tmp_path / "plain") == 0o640
    set_umask(0o077)
    write_whole(tmp_path / "group", b"", mode=0o640)
    assert mode_of(tmp_path / "group") == 0o640
    set_umask(0)
    write_whole(tmp_path / "private", b"", mode=0o600)
    assert mode_of(tmp_path / "private") == 0o600


def test_a_private_file_was_never_open_to_others(
    tmp_path: Path, set_umask: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_umask(0)
    seen: list[int] = []
    monkeypatch.setattr("os.fchmod", lambda fd, _: seen.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    write_whole(tmp_path / "f", b"secret", mode=0o600)
    assert seen == [0o600]


def test_what_is_synced_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_whole(path, b"old")
    seen: list[tuple[int, bytes]] = []
    monkeypatch.setattr("os.fsync", lambda fd: seen.append((os.fstat(fd).st_size, path.read_bytes())))
    write_whole(path, b"newer", sync=True)
    assert seen == [(5, b"old")]
    write_whole(path, b"not synced")
    assert len(seen) == 1


def test_a_secret_is_synced_and_private(
    tmp_path: Path, set_umask: Callable[[int], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_umask(0)
    seen: list[int] = []
    monkeypatch.setattr("os.fsync", seen.append)
    secretfiles.write_private(tmp_path / "password", "secret")
    assert len(seen) == 1
    assert mode_of(tmp_path / "password") == 0o600


def test_what_a_writer_left_is_found_with_its_pid_and_nothing_else_is(tmp_path: Path) -> None:
    earlier = tmp_path / ".job.1.json.4194999"  # as earlier versions named it
    for path in (earlier, tmp_path / "job.1.json", tmp_path / ".hidden", tmp_path / ".job.1.json", tmp_path / ".77"):
        path.touch()
    with replacing(tmp_path / "job.1.json") as aside:
        aside.touch()
        assert sorted(left_in(tmp_path)) == sorted([(aside, os.getpid()), (earlier, 4194999)])
    assert list(left_in(tmp_path)) == [(earlier, 4194999)]
