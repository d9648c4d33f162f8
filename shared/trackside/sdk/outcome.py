"""How an attempt ended: from what its code raised to an outcome, an error for people, and an exit code."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from trackside.errors import Diverged, InvalidJob, StopRequested

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
EXIT_STOPPED: Final = 75  # EX_TEMPFAIL: asked to stop, may go on later

_STOPS: Final = frozenset({"preempted", "paused", "cancelled", "fenced"})
_FAILURES: Final = frozenset({"user_error", "oom_host", "oom_gpu"})  # of the program; a device's tell of the device
_OURS: Final = str(Path(__file__).parent)
_MESSAGE_CHARS: Final = 4_000
_TRACEBACK_CHARS: Final = 32_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The end of an attempt as its end line tells it."""

    name: str
    exit_code: int
    error: dict[str, Any] | None = None
    bad_step: int | None = None  # diverged: where that began
    early: bool = False  # perhaps in answer to a stop: it left by sys.exit, or has a SIGTERM handler of its own


SUCCEEDED: Final = Outcome(name="succeeded", exit_code=EXIT_OK)
EARLY: Final = Outcome(name="succeeded", exit_code=EXIT_OK, early=True)


def of_exception(raised: BaseException) -> Outcome:
    """What an exception that left the user's code means."""
    if isinstance(raised, Diverged):
        error = {"type": "Diverged", "message": str(raised), "traceback": None}
        return Outcome(name="diverged", exit_code=EXIT_ERROR, error=error, bad_step=raised.steps[0])
    if isinstance(raised, StopRequested):
        name = raised.reason if raised.reason in _STOPS else "preempted"
        return Outcome(name=name, exit_code=EXIT_STOPPED)
    if isinstance(raised, SystemExit):
        return _of_exit(raised)
    inner = _alone(raised)
    if inner is not raised and isinstance(inner, StopRequested):
        return of_exception(inner)
    return Outcome(name=_class_of(inner), exit_code=EXIT_ERROR, error=_error(inner, formatted(raised)))


def _alone(raised: BaseException) -> BaseException:
    """What a group of one holds, as a TaskGroup raises it; to the interpreter no exit is one in a group."""
    inner = raised
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return raised if isinstance(inner, SystemExit) else inner


def despite(stop: StopRequested, ended: Outcome) -> Outcome:
    """The outcome of a run that was left by `stop`, however the program ended that was stopped."""
    if ended.name == SUCCEEDED.name:
        return of_exception(stop)
    if ended.name in _FAILURES and not isinstance(stop, Diverged):  # in the clean-up, say
        return replace(of_exception(stop), error=ended.error)
    return ended


def _of_exit(raised: SystemExit) -> Outcome:
    if raised.code is None or (isinstance(raised.code, int) and raised.code == 0):  # as the interpreter has it
        return EARLY
    said = f"the program exited with code {raised.code}" if isinstance(raised.code, int) else _message(raised)
    error = {"type": "SystemExit", "message": said[:_MESSAGE_CHARS], "traceback": formatted(raised)}
    code = raised.code & 0xFF if isinstance(raised.code, int) else EXIT_ERROR
    return Outcome(name="user_error", exit_code=code or EXIT_ERROR, error=error)


def _class_of(raised: BaseException) -> str:
    if isinstance(raised, InvalidJob):
        return "invalid_job"
    if isinstance(raised, MemoryError):
        return "oom_host"
    torch = sys.modules.get("torch")
    if torch is not None:
        # The memory error is a RuntimeError of its own; the accelerator's means that the context is dead for good.
        if isinstance(raised, torch.OutOfMemoryError):
            return "oom_gpu"
        if isinstance(raised, getattr(torch, "AcceleratorError", ())) or _is_cuda_error(raised):
            return "cuda_error"
    return "user_error"


def _is_cuda_error(raised: BaseException) -> bool:
    """What torch before 2.8 raises, and its libraries' calls still do."""
    return type(raised) is RuntimeError and _message(raised).startswith("CUDA error:")


def _error(raised: BaseException, trace: str) -> dict[str, Any]:
    kind = type(raised)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    return {"type": name, "message": _message(raised)[:_MESSAGE_CHARS], "traceback": trace}


def _message(raised: BaseException) -> str:
    try:
        return str(raised)
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not hide the failure itself
        return f"({type(raised).__name__} cannot be shown: {type(error).__name__} in its __str__)"


def formatted(raised: BaseException) -> str:
    """The traceback without the frames that led from our runner to the user's code."""
    shown = raised.with_traceback(_without_our_head(raised.__traceback__))
    try:
        text = "".join(traceback.format_exception(shown))
    except Exception as error:  # noqa: BLE001 - as above
        text = f"{type(raised).__name__}: its traceback cannot be shown ({type(error).__name__})\n"
    if len(text) <= _TRACEBACK_CHARS:
        return text
    half = _TRACEBACK_CHARS // 2
    return f"{text[:half]}\n  ... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _without_our_head(trace: TracebackType | None) -> TracebackType | None:
    rest = trace
    while rest is not None and _is_machinery(rest.tb_frame.f_code.co_filename):
        rest = rest.tb_next
    return rest if rest is not None else trace


def _is_machinery(filename: str) -> bool:
    return filename.startswith((_OURS, "<frozen runpy", "<frozen importlib"))
