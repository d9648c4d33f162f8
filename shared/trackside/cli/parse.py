"""What people type on the command line, made into values; raises InvalidJob with what to type instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from trackside.errors import InvalidJob

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME_MAX: Final = 120
_SHORTEST_S: Final = 0.001  # records and waits count milliseconds
_Word = TypeVar("_Word", bound=StrEnum)


def one_of(option: str, words: type[_Word]) -> Callable[[str], _Word]:
    """What reads an option that takes one of these words."""

    def read(text: str) -> _Word:
        try:
            return words(text)
        except ValueError:
            *others, last = words
            raise InvalidJob(f"{option} is {text!r}: give {', '.join(others)} or {last}") from None

    return read


def whole(option: str, least: int | None = None) -> Callable[[str], int]:
    """What reads an option that takes a whole number, not below `least`."""

    def read(text: str) -> int:
        wanted = "a whole number" if least is None else f"a whole number from {least} on"
        try:
            number = int(text)
        except ValueError:
            raise InvalidJob(f"{option} is {text!r}: give {wanted}") from None
        if least is not None and number < least:
            raise InvalidJob(f"{option} is {text!r}: give {wanted}")
        return number

    return read


def duration_s(text: str, option: str) -> float:
    """Seconds in `90`, `90s`, `15m`, `2h` or `1h30m`."""
    parts = list(_DURATION.finditer(text.strip()))
    whole = "".join(part.group(0) for part in parts)
    bare = len(parts) > 1 and any(part.group(2) is None for part in parts)
    if not parts or whole != text.strip() or bare:
        raise InvalidJob(f"{option} is {text!r}: give seconds, or a number with s, m, h or d such as 15m")
    seconds = sum(float(part.group(1)) * _SECONDS[part.group(2) or "s"] for part in parts)
    if not _SHORTEST_S <= seconds < 1e9:
        raise InvalidJob(f"{option} is {text!r}: give at least 1ms and less than 30 years")
    return seconds


def stall_limit_s(text: str) -> float:
    """Seconds without a step that are a hang; 0 for `none`: nothing is."""
    return 0.0 if text.strip().lower() == "none" else duration_s(text, "--stall-limit")


def params(pairs: list[str], file: Path | None, *, max_bytes: int) -> dict[str, Any]:
    """Parameters from `--params-file` and `--param`, the latter winning."""
    import orjson

    merged: dict[str, Any] = {}
    if file is not None:
        try:
            loaded = orjson.loads(file.read_bytes())
        except OSError as error:
            raise InvalidJob(
                f"--params-file {file} cannot be read: {error.strerror}; give the path of a JSON file"
            ) from error
        except ValueError as error:
            raise InvalidJob(f"--params-file {file} is no JSON: {error}; give a JSON object of parameters") from error
        if not isinstance(loaded, dict):
            raise InvalidJob(f"--params-file {file} holds a {type(loaded).__name__}: give a JSON object of parameters")
        merged.update(loaded)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidJob(f"--param {pair!r}: give name=value")
        try:
            merged[key.strip()] = orjson.loads(value)
        except ValueError:
            merged[key.strip()] = value
    try:
        count = len(orjson.dumps(merged))
    except (TypeError, ValueError) as error:
        raise InvalidJob(f"the parameters cannot be sent: {error}; give values that JSON has") from error
    if count > max_bytes:
        raise InvalidJob(
            f"the parameters take {count} bytes and TRACKSIDE_PARAMS_MAX_BYTES is {max_bytes}: "
            "put large data into a file, or raise that setting"
        )
    return merged


def name(text: str) -> str:
    """A job's name: one printable line of limited length."""
    if not text.strip() or len(text) > _NAME_MAX or not text.isprintable():
        raise InvalidJob(f"--name {text[:40]!r}: give 1 to {_NAME_MAX} printable characters")
    return text.strip()
