"""Files that only their owner may read: passwords made once, and small records replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from trackside.bus.acl import new_password
from trackside.errors import ServerError

_PRIVATE_DIR: Final = 0o700
_PRIVATE_FILE: Final = 0o600


def private_dir(path: Path) -> Path:
    """Make the directory and close it to everybody else, also where it was there already."""
    try:
        path.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
        path.chmod(_PRIVATE_DIR)
    except OSError as error:
        raise ServerError(
            f"{path} cannot be made a private directory: {error.strerror}. Set TRACKSIDE_HOME to one of yours"
        ) from error
    return path


def write_private(path: Path, text: str, *, mode: int = _PRIVATE_FILE) -> None:
    """Write beside, flush, rename: a reader sees the old text or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, mode)  # whatever the umask
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def ensure_password(path: Path, *, mode: int = _PRIVATE_FILE) -> str:
    """The password in this file, made now if there is none."""
    if not path.exists():
        write_private(path, new_password() + "\n", mode=mode)
    return read_password(path)


def read_password(path: Path) -> str:
    """The password in this file; raises ServerError where there is none to read."""
    try:
        password = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ServerError(
            f"cannot read the password file {path}: {error.strerror}. Start `trackside up` once"
        ) from error
    if not password:
        raise ServerError(f"the password file {path} is empty: delete it and start again, and a new one is made")
    return password
