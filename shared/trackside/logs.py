"""Logging: events with fields, coloured on a terminal and JSON elsewhere.

A line that the disk does not take, or whose reader is gone, is dropped: no service ends for what it cannot say.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import Any, cast

import structlog

from trackside.config import Settings
from trackside.errors import ConfigurationError

Logger = structlog.typing.FilteringBoundLogger


class Forgiving:
    """A stream that may be unable to take what is written to it: its disk is full, or its reader is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return int(self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(self._stream.isatty())
        return False


def configure(settings: Settings, **bound: Any) -> None:
    """Set up structlog for this process; `bound` (role, host, ...) is added to every line."""
    level = logging.getLevelNamesMapping().get(settings.log_level.upper())
    if level is None:
        raise ConfigurationError(f"TRACKSIDE_LOG_LEVEL is {settings.log_level!r}: use debug, info, warning or error")
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if pretty else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(Any, Forgiving(sys.stderr))),
        cache_logger_on_first_use=False,  # forked children bind anew
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def get() -> Logger:
    """The process's logger."""
    return cast(Logger, structlog.get_logger())
