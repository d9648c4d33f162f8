"""Files that are replaced as a whole: written beside and renamed, so that nobody ever reads half of one.

A temporary is named `.<name>.<random>.<pid>`: writers on several hosts may share a folder, and their pids are alike. By
the pid, which is its writer's, a host can tell of its own folders what a process that was killed has left (`left_in`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_TEMPORARY: Final = re.compile(r"\..+\.(\d+)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to make something at, which is put in `path`'s place at the end; after an error nothing is left of it."""
    aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # on a full disk it would be one more each time
            aside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes, *, mode: int | None = None, sync: bool = False) -> None:
    """Put `data` in the place of what the file at `path` has. Raises OSError, and then the old content stands.

    `mode`: what the file gets whatever the umask, None: what the umask leaves. `sync`: a power cut right after the
    return must not find the new name with nothing in it.
    """
    with replacing(path) as aside:
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        with os.fdopen(fd, "wb") as file:
            if mode is not None:
                os.fchmod(fd, mode)
            file.write(data)
            if sync:
                file.flush()
                os.fsync(fd)


def left_in(folder: Path) -> Iterator[tuple[Path, int]]:
    """The temporaries in this folder, each with its writer's pid on its host; whoever lives may be about to rename."""
    for path in folder.glob(".*"):
        if found := _TEMPORARY.fullmatch(path.name):
            yield path, int(found[1])
