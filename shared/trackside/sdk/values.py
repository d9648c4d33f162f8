"""What `run.log` and `run.summary` take: numbers, as Python, numpy or torch have them, to what JSON can carry.

A value on a GPU is copied without blocking into pinned memory, with an event behind the copy, and read once the event
has come: logging adds no synchronisation to the training loop.
"""

from __future__ import annotations

import math
import numbers
import sys
from decimal import Decimal
from typing import Any, Final

Plain = bool | int | float | str

_INT_LIMIT: Final = 2**63


class Arriving:
    """A number on its way from a GPU."""

    __slots__ = ("_event", "_host")

    def __init__(self, value: Any) -> None:
        torch = sys.modules["torch"]
        # Copied by the stream that computed it, so that what the script does to the tensor next comes after the copy.
        self._host = value.detach().to("cpu", non_blocking=True)
        with torch.cuda.device(value.device):
            self._event = torch.cuda.Event()
            self._event.record()

    def here(self) -> bool:
        """Whether the copy has arrived; never waits."""
        return bool(self._event.query())

    def get(self) -> Plain:
        """The number; waits for the copy when it is not here yet."""
        self._event.synchronize()
        return plain_float(self._host.item())


def plain_float(value: float) -> Plain:
    """A number as JSON carries it: NaN and the infinities by name."""
    if value - value == 0:
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def number(key: str, value: Any) -> Plain | Arriving:
    """A metric's value; raises TypeError naming `key` when it is no number."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_INT_LIMIT <= value < _INT_LIMIT else _large(value)
    if isinstance(value, float):
        return plain_float(float(value))
    if getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None)):
        return _scalar(key, value)
    if isinstance(value, (numbers.Real, Decimal)):
        return _large(value)
    raise _refusal(key, value)


def _scalar(key: str, value: Any) -> Plain | Arriving:
    """The value of a 0-d tensor, 0-d array or numpy scalar."""
    if getattr(value, "is_cuda", False):
        if value.is_complex():
            raise _refusal(key, value)
        return Arriving(value)
    if getattr(value, "mask", False):
        return "NaN"  # whatever stands behind the mask
    inner = value.item()
    if isinstance(inner, (bool, int, float)):
        return number(key, inner)
    if isinstance(inner, numbers.Real):  # longer than a float
        return _large(inner)
    raise _refusal(key, value)


def fact(key: str, value: Any) -> Plain | None:
    """A summary's value: a number, text or None; waits for a value on a GPU."""
    if value is None or isinstance(value, str):
        return value
    found = number(key, value)
    return found.get() if isinstance(found, Arriving) else found


def _large(value: Any) -> Plain:
    """A number of a kind that may be larger than a float."""
    try:
        return plain_float(float(value))
    except OverflowError:
        return "Infinity" if value > 0 else "-Infinity"


def _refusal(key: str, value: Any) -> TypeError:
    shape = getattr(value, "shape", None)
    what = type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
    return TypeError(f"{key}= is a {what}, not one number: log a number or a 0-d tensor; text belongs in run.summary")
