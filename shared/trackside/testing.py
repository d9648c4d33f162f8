"""Helpers for tests, the project's own and its users'."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout_s: float, message: str, every_s: float = 0.01) -> T:
    """Return the condition's first true value; raise AssertionError(message) when `timeout_s` pass without one."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"{message} (waited {timeout_s} s)")
        time.sleep(every_s)
