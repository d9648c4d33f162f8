"""The identity of a folder of data, by which it is known where a checkpoint lies: `<data>/storage-id`."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def identity(data: Path) -> str:
    """The id of this data folder, made once, also where several hosts share it and start at one time."""
    path = _path(data)
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        made = data / f".{path.name}.{secrets.token_hex(8)}"
        try:
            made.write_text(secrets.token_hex(8), encoding="ascii")
            with suppress(FileExistsError):  # a rename would put a second id in the place of the first
                os.link(made, path)
        finally:
            made.unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()


def known(data: Path) -> str | None:
    """The id of this data folder, None where it has none or it cannot be read; makes nothing."""
    try:
        return _path(data).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _path(data: Path) -> Path:
    return data / "storage-id"
