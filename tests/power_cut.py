"""What a power cut may leave of a folder: file operations are recorded, then every state that they allow is replayed.

The rules are POSIX's, stricter than any file system in use. Content that was not flushed may be there, be gone, be cut
or be zeros. A name that was made, moved or removed may or may not be so until its directory was flushed, each
independently of the others.
"""

from __future__ import annotations

import io
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

# A folder's content by name; a file's bytes.
Tree = tuple[tuple[str, "Tree | bytes"], ...]

_CHANGING: Final = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "open", "truncate", "ftruncate")
_SYNCING: Final = ("fsync", "fdatasync")


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A file's content is now this."""

    file: int
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """One operation on the names of a directory."""

    directory: int
    gone: tuple[str, ...]
    new: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Synced:
    """A file or directory was flushed; `path` as seen from the root."""

    node: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """The recorded code promised something to the world."""

    what: Any


Entry = Changed | Named | Synced | Told


class Recorder:
    """Sees what the code of this process does below `root`, by looking after each call of the operating system.

    What is there already is taken for flushed.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.log: list[Entry] = []
        self._names: dict[int, dict[str, int]] = {}
        self._contents: dict[int, bytes] = {}
        self._held: dict[int, int] = {}  # open descriptors, so that no inode's number is given out again
        self._looking = False
        self._real_open = os.open
        self.home = self._look_at(root)
        self.log += [Synced(node=node, path="") for node in self._held]
        self.start = len(self.log)  # what came before is on the disk
        for name in _CHANGING:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        for name in _SYNCING:
            monkeypatch.setattr(os, name, self._syncing(getattr(os, name)))
        monkeypatch.setattr(io, "open", self._wrapped(io.open))

    def told(self, what: Any) -> None:
        self._look()
        self.log.append(Told(what=what))

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._look()
            try:
                return function(*args, **kwargs)
            finally:
                self._look()

        return call

    def _syncing(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def call(fd: int) -> None:
            self._look()
            function(fd)
            path = Path(f"/proc/self/fd/{fd}").readlink()
            if path.is_relative_to(self.root):
                self.log.append(Synced(node=os.fstat(fd).st_ino, path=str(path.relative_to(self.root))))

        return call

    def _look(self) -> None:
        if not self._looking:
            self._looking = True
            try:
                self._look_at(self.root)
            finally:
                self._looking = False

    def _look_at(self, path: Path) -> int:
        """Log what is new at and below `path`; its inode's number."""
        found = path.lstat()
        node = found.st_ino
        if node not in self._held:
            self._held[node] = self._real_open(path, os.O_RDONLY)
        if stat.S_ISDIR(found.st_mode):
            now = {name: self._look_at(path / name) for name in sorted(os.listdir(path))}  # noqa: PTH208 -- names only
            before = self._names.get(node, {})
            gone = tuple(name for name in before if before[name] != now.get(name))
            new = tuple((name, child) for name, child in now.items() if before.get(name) != child)
            if gone or new or node not in self._names:
                self._names[node] = now
                self.log.append(Named(directory=node, gone=gone, new=new))
        else:
            content = os.pread(self._held[node], found.st_size, 0)
            if content != self._contents.get(node):
                self._contents[node] = content
                self.log.append(Changed(file=node, content=content))
        return node


@dataclass(kw_only=True, slots=True)
class Disk:
    """What is surely on the disk, and what was done since."""

    names: dict[int, dict[str, int]] = field(default_factory=dict)
    pending: dict[int, list[Named]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    unsure: dict[int, bytes] = field(default_factory=dict)

    def do(self, entry: Entry) -> None:
        if isinstance(entry, Changed):
            self.unsure[entry.file] = entry.content
        elif isinstance(entry, Named):
            self.names.setdefault(entry.directory, {})
            self.pending.setdefault(entry.directory, []).append(entry)
        elif isinstance(entry, Synced):
            for named in self.pending.pop(entry.node, ()):
                _rename(self.names[entry.node], named)
            if entry.node in self.unsure:
                self.contents[entry.node] = self.unsure.pop(entry.node)

    def states(self, node: int) -> Iterator[Tree | bytes]:
        """Every form in which a file or directory may be found."""
        if node not in self.names:
            yield from self._contents(node)
            return
        pending = self.pending.get(node, [])
        for chosen in itertools.product((True, False), repeat=len(pending)):
            names = dict(self.names[node])
            for named in itertools.compress(pending, chosen):
                _rename(names, named)
            for children in itertools.product(*(self.states(child) for child in names.values())):
                yield tuple(zip(names, children, strict=True))

    def _contents(self, node: int) -> Iterator[bytes]:
        sure = self.contents.get(node, b"")
        unsure = self.unsure.get(node)
        yield from {sure} if unsure is None else {sure, unsure, unsure[: len(unsure) // 2], bytes(len(unsure))}


def _rename(names: dict[str, int], named: Named) -> None:
    for name in named.gone:
        names.pop(name, None)
    names.update(named.new)


def cuts(log: Sequence[Entry], home: int, start: int) -> Iterator[tuple[Tree, tuple[Any, ...]]]:
    """Every state in which a cut at a place of the log from `start` on may leave the folder, and what had been told."""
    disk = Disk()
    told: tuple[Any, ...] = ()
    seen: set[tuple[Tree | bytes, int]] = set()
    for number, entry in enumerate(log):
        disk.do(entry)
        if number < start:
            continue
        if isinstance(entry, Told):
            told = (*told, entry.what)
        for tree in disk.states(home):
            if (tree, len(told)) not in seen:
                seen.add((tree, len(told)))
                assert isinstance(tree, tuple)
                yield tree, told


def write(tree: Tree, path: Path) -> None:
    """Make the folder that a cut left."""
    path.mkdir()
    for name, content in tree:
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
        else:
            write(content, path / name)
