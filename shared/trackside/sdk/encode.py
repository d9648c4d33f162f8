"""Records to JSON bytes: orjson where it is installed, the standard library elsewhere.

An attempt may run in an interpreter that has torch and nothing else of ours.
"""

from __future__ import annotations

import json
from typing import Any

orjson: Any  # None in a foreign interpreter without it: slower, the same bytes for the same plain values
try:
    import orjson
except ImportError:
    orjson = None


def dumps(value: Any) -> bytes:
    """One line of compact JSON without the newline; raises TypeError for what JSON cannot carry."""
    if orjson is not None:
        try:
            return bytes(orjson.dumps(value))
        except TypeError:
            pass  # whole numbers beyond 64 bits: the standard library writes them
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def dumps_line(value: Any) -> bytes:
    """One line of compact JSON with its newline."""
    if orjson is not None:
        try:
            return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)  # type: ignore[no-any-return]
        except TypeError:
            pass
    return dumps(value) + b"\n"


def loads(data: bytes) -> Any:
    """The value in `data`; raises ValueError when it is no JSON."""
    return (json if orjson is None else orjson).loads(data)
