"""Records to bytes and back, a version in each.

Two shapes: one JSON document (events, beats, batches), and flat Redis hash fields (jobs, attempts, slots), where text
stands as it is, so that `HGET ts:job:… state` reads well, and everything else is JSON. A field this version does not
know is ignored, a missing one takes its default, and one of a wrong type is refused with the bytes kept.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

from trackside.errors import DecodeError

VERSION: Final = 1
_VERSION_FIELD: Final = "v"
T = TypeVar("T")


def encode(record: Any) -> bytes:
    """One JSON document of a record; fields that are None are left out."""
    return orjson.dumps({_VERSION_FIELD: VERSION, **_plain(record)})


def decode(kind: type[T], raw: bytes) -> T:
    """The record in a JSON document; raises DecodeError, which keeps the bytes."""
    try:
        data = orjson.loads(raw)
    except ValueError as error:
        raise DecodeError(f"no JSON where a {kind.__name__} should be: {error}", raw=bytes(raw)) from error
    if not isinstance(data, dict):
        raise DecodeError(f"a {kind.__name__} must be a JSON object, not {type(data).__name__}", raw=bytes(raw))
    return _build(kind, data, bytes(raw))


def encode_fields(record: Any) -> dict[str, bytes]:
    """The fields of a Redis hash for a record; fields that are None are left out."""
    flat = {
        name: value.encode() if isinstance(value, str) else orjson.dumps(value)
        for name, value in _plain(record).items()
    }
    return {_VERSION_FIELD: str(VERSION).encode(), **flat}


def decode_fields(kind: type[T], raw: Mapping[bytes, bytes]) -> T:
    """The record in a Redis hash; raises DecodeError."""
    known, text = _readers(kind), _text_fields(kind)
    data: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.decode("utf-8", "replace")
        if name == _VERSION_FIELD:
            data[name] = int(value) if value.isdigit() else value
        elif name in known:
            try:
                data[name] = value.decode() if name in text else orjson.loads(value)
            except ValueError as error:
                raise DecodeError(f"{kind.__name__}.{name} cannot be read: {error}", raw=bytes(value)) from error
    return _build(kind, data, b"")


def number_or_name(value: float) -> float | str:
    """A finite number as it is; the others by the names JSON has no number for."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _plain(record: Any) -> dict[str, Any]:
    return {f.name: _plain_value(value) for f in fields(record) if (value := getattr(record, f.name)) is not None}


def _plain_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain_value(item) for key, item in value.items()}
    return value


def _build(kind: type[T], data: Mapping[str, Any], raw: bytes) -> T:
    version = data.get(_VERSION_FIELD, VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise DecodeError(
            f"a {kind.__name__} of version {version!r}; this program reads up to {VERSION}: upgrade it", raw=raw
        )
    given: dict[str, Any] = {}
    for name, read in _readers(kind).items():
        if name in data:
            try:
                given[name] = read(data[name])
            except DecodeError as error:
                raise DecodeError(f"{kind.__name__}.{name}: {error.message}", raw=raw) from None
            except (TypeError, ValueError) as error:
                raise DecodeError(f"{kind.__name__}.{name}: {error}", raw=raw) from None
    missing = _required(kind) - given.keys()
    if missing:
        raise DecodeError(f"a {kind.__name__} without {', '.join(sorted(missing))}", raw=raw)
    return kind(**given)


def _required(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


_READERS: Final[dict[Any, dict[str, Callable[[Any], Any]]]] = {}


def _readers(kind: Any) -> dict[str, Callable[[Any], Any]]:
    if kind not in _READERS:
        hints = get_type_hints(kind)
        _READERS[kind] = {f.name: _reader(hints[f.name]) for f in fields(kind)}
    return _READERS[kind]


_TEXT_FIELDS: Final[dict[Any, frozenset[str]]] = {}


def _text_fields(kind: Any) -> frozenset[str]:
    if kind not in _TEXT_FIELDS:  # resolving the hints of a Job takes 300 us
        hints = get_type_hints(kind)
        _TEXT_FIELDS[kind] = frozenset(f.name for f in fields(kind) if _is_text(hints[f.name]))
    return _TEXT_FIELDS[kind]


def _is_text(hint: Any) -> bool:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return all(
        option in (str, type(None))
        or (isinstance(option, type) and issubclass(option, str))
        or get_origin(option) is Literal
        for option in options
    )


def _reader(hint: Any) -> Callable[[Any], Any]:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _union_reader([_reader(arg) for arg in args])
    if origin is Literal:
        return _literal_reader(args)
    if origin is tuple:
        item = _reader(args[0])
        return lambda value: tuple(item(each) for each in _checked(value, list))
    if origin is dict:
        item = _reader(args[1])
        return lambda value: {str(key): item(each) for key, each in _checked(value, dict).items()}
    if hint is type(None):
        return lambda value: _checked(value, type(None))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: _build(hint, _checked(value, dict), b"")
    if hint is float:
        return lambda value: float(_checked(value, (int, float)))
    if hint in (int, str, bool):
        return lambda value: _checked(value, hint)
    raise TypeError(f"no codec for {hint!r}")


def _checked(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, (int, float))):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise DecodeError(f"{wanted} expected, not {type(value).__name__}")
    return value


def _literal_reader(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in allowed:
            raise DecodeError(f"one of {allowed} expected, not {value!r}")
        return value

    return read


def _union_reader(readers: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except (DecodeError, ValueError, TypeError):
                continue
        raise DecodeError(f"{type(value).__name__} not expected here")

    return read
