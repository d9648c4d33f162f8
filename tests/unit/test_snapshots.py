"""A submitted folder as an archive."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trackside import snapshots
from trackside.errors import InvalidJob
from trackside.snapshots import Snapshot, pack, unpack

LIMIT = 1024 * 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(snapshot: Snapshot) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(snapshot.data)) as archive:
        return archive.getnames()


def test_equal_folders_give_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"train.py": "print(1)", "pkg/x.py": "x = 1"})
    second = write(tmp_path / "b", {"pkg/x.py": "x = 1", "train.py": "print(1)"})
    os.utime(second / "train.py", (1, 1))

    assert pack(first, max_bytes=LIMIT) == pack(second, max_bytes=LIMIT)
    (second / "train.py").write_text("print(2)")
    assert pack(first, max_bytes=LIMIT).sha256 != pack(second, max_bytes=LIMIT).sha256


def test_a_packed_folder_unpacks_to_the_same_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a", {"train.py": "print(1)", "run.sh": "true"})
    (source / "run.sh").chmod(0o700)
    (source / "again.py").symlink_to("train.py")

    snapshot = pack(source, max_bytes=LIMIT)
    unpack(snapshot.data, tmp_path / "out", sha256=snapshot.sha256)

    assert (tmp_path / "out" / "train.py").read_text() == "print(1)"
    assert os.access(tmp_path / "out" / "run.sh", os.X_OK)
    assert (tmp_path / "out" / "again.py").readlink() == Path("train.py")
    assert (snapshot.files, snapshot.total_bytes) == (3, 12)


def test_ignore_files_work_as_git_does_it(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            ".gitignore": "*.bin\n/out/\n!keep.bin\n",
            ".tracksideignore": "data/\n",
            "train.py": "",
            "a.bin": "",
            "keep.bin": "",
            "out/x": "",
            "src/out/x": "",
            "data/y": "",
            "src/.gitignore": "local.txt\n!b.bin\n",
            "src/local.txt": "",
            "src/b.bin": "",
            "local.txt": "",
        },
    )
    kept = {name for name in names(pack(root, max_bytes=LIMIT)) if "ignore" not in name}
    assert kept == {"train.py", "keep.bin", "src/out/x", "src/b.bin", "local.txt"}


def test_what_is_never_part_of_a_program_stays_out_whatever_an_ignore_file_says(tmp_path: Path) -> None:
    junk = {
        ".git/config": "",
        ".venv/x": "",
        "a/__pycache__/b.pyc": "",
        "node_modules/x": "",
        ".trackside/x": "",
        "b.pyc": "",
    }
    root = write(tmp_path, {"train.py": "", ".gitignore": "!.git/\n!*.pyc\n", **junk})
    assert names(pack(root, max_bytes=LIMIT)) == [".gitignore", "train.py"]


def test_what_goes_away_while_the_folder_is_packed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is alive: caches and half-written files come and go in it."""
    root = write(tmp_path, {"train.py": "x", "cache/x.tmp": "x", "half.tmp": "x", "late.tmp": "x"})
    listed, packed = os.scandir, snapshots._archive

    def going(folder: Path) -> list[os.DirEntry[str]]:
        found = list(listed(folder))
        if Path(folder) == root:
            (root / "cache" / "x.tmp").unlink()
            (root / "cache").rmdir()
            (root / "half.tmp").unlink()
        return found

    def later(entries: Sequence[Any]) -> bytes:
        (root / "late.tmp").unlink()
        return packed(entries)

    monkeypatch.setattr(os, "scandir", going)
    monkeypatch.setattr(snapshots, "_archive", later)
    assert names(pack(root, max_bytes=LIMIT)) == ["train.py"]


def test_more_patterns_can_be_given(tmp_path: Path) -> None:
    root = write(tmp_path, {"train.py": "", "big.csv": ""})
    assert names(pack(root, max_bytes=LIMIT, extra_ignores=["*.csv"])) == ["train.py"]


def test_a_folder_that_is_too_large_names_what_makes_it_so(tmp_path: Path) -> None:
    root = write(tmp_path, {"train.py": ""})
    (root / "data").mkdir()
    (root / "data" / "x").write_bytes(os.urandom(4096))
    with pytest.raises(InvalidJob, match=r"data/ \(.*tracksideignore"):
        pack(root, max_bytes=1000)


def test_a_huge_folder_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidJob, match=r"disk.img"):
        pack(tmp_path, max_bytes=LIMIT)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, target: str) -> None:
    root = write(tmp_path / "a", {"train.py": ""})
    (root / "link").symlink_to(target)
    with pytest.raises(InvalidJob, match="outside"):
        pack(root, max_bytes=LIMIT)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    snapshot = pack(write(tmp_path / "a", {"train.py": "print(1)"}), max_bytes=LIMIT)
    with pytest.raises(InvalidJob, match="damaged"):
        unpack(snapshot.data + b"x", tmp_path / "out", sha256=snapshot.sha256)
    with pytest.raises(InvalidJob, match="unpacked"):
        unpack(b"no archive", tmp_path / "out")


def test_an_archive_that_reaches_outside_is_refused(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        info = tarfile.TarInfo("../evil.txt")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(InvalidJob):
        unpack(raw.getvalue(), tmp_path / "out")
    assert not (tmp_path / "evil.txt").exists()
