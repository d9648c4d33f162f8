"""Files that only their owner may read: passwords made once, and small records replaced as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trackside.bus.acl import new_password
from trackside.errors import ServerError
from trackside.wholefile import write_whole

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
    """Put `text` in the file's place: a reader, or who comes after a power cut, finds the old text or the new one."""
    write_whole(path, text.encode(), mode=mode, sync=True)


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
