"""One launcher to a home: a lock that the kernel frees when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from trackside.errors import AlreadyRunning
from trackside.secretfiles import private_dir


class HomeLock:
    """Holds `<home>/lock` until released; the pid in the file is for people, the lock itself is the kernel's."""

    def __init__(self, home: Path) -> None:
        self.path = home / "lock"
        self._fd: int | None = None

    def acquire(self) -> Self:
        """Take the lock; raises AlreadyRunning with the holder's pid. A second call while held does nothing."""
        if self._fd is not None:
            return self
        private_dir(self.path.parent)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(fd)
            os.close(fd)
            raise AlreadyRunning(
                f"{self.path.parent} is in use by process {pid}: stop that one first, "
                "or set TRACKSIDE_HOME to another directory",
                pid=pid,
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd
        return self

    def release(self) -> None:
        """Give the lock back. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    @property
    def is_held(self) -> bool:
        """Whether some process holds it."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else 0
