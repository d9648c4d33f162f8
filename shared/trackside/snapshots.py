"""A submitted folder as one archive: the same folder gives the same bytes, so that equal submissions share them.

Left out: what `.gitignore` and `.tracksideignore` name (in any folder, with git's rules), and what is never part of a
program (version control, caches, environments). The walk counts sizes before anything is read, so a home directory
submitted by mistake is refused in a moment. What goes away meanwhile is left out, as if the walk had come later.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from trackside.errors import InvalidJob

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILES: Final = (".gitignore", ".tracksideignore")
ALWAYS_IGNORED: Final = (
    *(".git/", ".hg/", ".svn/", "__pycache__/", ".venv/", "venv/", "node_modules/", ".trackside/", "*.pyc"),
    *(".mypy_cache/", ".ruff_cache/", ".pytest_cache/", ".ipynb_checkpoints/", ".DS_Store"),
)
MAX_FILES: Final = 10_000
_HUGE: Final = 20  # source text packs to a fifth or less: past this many times the limit there is no hope
_LISTED: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A packed folder; `sha256` is of `data` and its name on the bus."""

    sha256: str
    data: bytes
    files: int
    total_bytes: int  # before packing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    name: str  # relative, with slashes
    path: Path
    bytes: int
    executable: bool
    link: str | None = None


def pack(root: Path, *, max_bytes: int, extra_ignores: Sequence[str] = ()) -> Snapshot:
    """Pack a folder; raises InvalidJob when it is too large, or a link leaves it."""
    root = root.resolve()
    if not root.is_dir():
        raise InvalidJob(f"{root} is no folder: give the folder that holds the program")
    entries: list[_Entry] = []
    total = 0
    for entry in _walk(root, extra_ignores):
        entries.append(entry)
        total += entry.bytes
        if len(entries) > MAX_FILES or total > _HUGE * max_bytes:
            raise _too_large(entries, f"more than {len(entries) - 1} files, {_mib(total)}", max_bytes)
    entries.sort(key=lambda entry: entry.name)
    data = _archive(entries)
    if len(data) > max_bytes:
        raise _too_large(entries, f"{_mib(len(data))} packed", max_bytes)
    return Snapshot(sha256=hashlib.sha256(data).hexdigest(), data=data, files=len(entries), total_bytes=total)


def unpack(data: bytes, dest: Path, *, sha256: str | None = None) -> None:
    """Unpack an archive into a folder; raises InvalidJob when its digest is another, or it reaches outside."""
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise InvalidJob(f"the snapshot {sha256[:12]} arrived damaged: submit the job again", sha256=sha256)
    dest.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
            archive.extractall(dest, filter="data")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile) as error:
        raise InvalidJob(f"the snapshot cannot be unpacked ({error}): submit the job again") from error


def _walk(root: Path, extra: Sequence[str]) -> Iterator[_Entry]:
    """Every file that belongs to the program, folder by folder."""
    pending: list[tuple[Path, tuple[tuple[str, GitIgnoreSpec], ...]]] = [
        (root, (("", _spec([*ALWAYS_IGNORED, *extra])),))
    ]
    while pending:
        folder, outer = pending.pop()
        prefix = "" if folder == root else folder.relative_to(root).as_posix() + "/"
        try:
            specs = (*outer, *_ignore_files(folder, prefix))
            listed = sorted(os.scandir(folder), key=lambda item: item.name)
        except FileNotFoundError:
            continue
        except PermissionError as error:
            raise InvalidJob(
                f"{folder} cannot be read: change its permissions, or add it to .tracksideignore"
            ) from error
        for item in listed:
            name = prefix + item.name
            is_folder = item.is_dir(follow_symlinks=False)
            if _ignored(f"{name}/" if is_folder else name, specs):
                continue
            if is_folder:
                pending.append((Path(item.path), specs))
            else:
                entry = None
                with suppress(FileNotFoundError):
                    entry = _entry(root, item, name)
                if entry is not None:
                    yield entry


def _entry(root: Path, item: os.DirEntry[str], name: str) -> _Entry | None:
    """What is to be packed of it; None for what is neither file nor link. Raises FileNotFoundError if it is gone."""
    path = Path(item.path)
    if item.is_symlink():
        return _link(root, path, name)
    if not item.is_file(follow_symlinks=False):
        return None
    status = item.stat(follow_symlinks=False)
    return _Entry(name=name, path=path, bytes=status.st_size, executable=bool(status.st_mode & stat.S_IXUSR))


def _spec(lines: Iterable[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _ignore_files(folder: Path, prefix: str) -> Iterator[tuple[str, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        path = folder / name
        if path.is_file():
            try:
                yield prefix, _spec(path.read_text(encoding="utf-8", errors="replace").splitlines())
            except ValueError as error:
                raise InvalidJob(f"{path} has a pattern that cannot be read: {error}; mend it") from error


def _ignored(name: str, specs: Sequence[tuple[str, GitIgnoreSpec]]) -> bool:
    """Git's rule: the innermost file that says something about the name decides; ours for ever is decided first."""
    if specs[0][1].match_file(name):
        return True
    for prefix, spec in reversed(specs[1:]):
        verdict = spec.check_file(name[len(prefix) :]).include
        if verdict is not None:
            return verdict
    return False


def _link(root: Path, path: Path, name: str) -> _Entry:
    target = path.readlink()
    inside = (path.parent / target).resolve()
    if target.is_absolute() or not inside.is_relative_to(root):
        raise InvalidJob(
            f"{name} is a link to {target}, outside of the folder: copy the file, or add it to .tracksideignore"
        )
    return _Entry(name=name, path=path, bytes=0, executable=False, link=target.as_posix())


def _archive(entries: Sequence[_Entry]) -> bytes:
    raw = io.BytesIO()
    # A name or time in the gzip header would make equal folders differ.
    with (
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.mode = 0o755 if entry.executable else 0o644
            if entry.link is not None:
                info.type, info.linkname = tarfile.SYMTYPE, entry.link
                archive.addfile(info)
                continue
            content = _content(entry)
            if content is None:
                continue
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def _content(entry: _Entry) -> bytes | None:
    try:
        return entry.path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidJob(
            f"{entry.name} cannot be read ({error.strerror}): mend it, or add it to .tracksideignore"
        ) from error


def _too_large(entries: Sequence[_Entry], what: str, max_bytes: int) -> InvalidJob:
    sizes: dict[str, int] = {}
    for entry in entries:
        top = PurePosixPath(entry.name).parts
        name = f"{top[0]}/" if len(top) > 1 else top[0]
        sizes[name] = sizes.get(name, 0) + entry.bytes
    largest = sorted(sizes.items(), key=lambda item: item[1], reverse=True)[:_LISTED]
    listed = ", ".join(f"{name} ({_mib(size)})" for name, size in largest)
    return InvalidJob(
        f"the folder is too large to submit: {what}; the limit is {_mib(max_bytes)} packed and {MAX_FILES} files. "
        f"Largest: {listed}. Add what is no program, such as data, to .tracksideignore",
        limit_bytes=max_bytes,
    )


def _mib(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
