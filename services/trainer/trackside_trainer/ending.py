"""Why an attempt ended: from its end line, its exit status, and what was asked of it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trackside.models import Failure, Outcome, Reason

# Both journal and store have these words for the same thing.
_TOLD: Final = {reason.value: reason for reason in Reason if reason not in (Reason.STALLED, Reason.LOST)}
_STOPS: Final = frozenset({Reason.PREEMPTED, Reason.PAUSED, Reason.CANCELLED, Reason.TIMEOUT, Reason.FENCED})
_MAX_CHARS: Final = 40_000
_OBEYED: Final = {
    Reason.PREEMPTED: "stopped at a step boundary to make room",
    Reason.PAUSED: "paused at a step boundary",
    Reason.CANCELLED: "stopped as asked",
    Reason.TIMEOUT: "its time limit was reached",
    Reason.FENCED: "a newer attempt owns the job",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """What was seen of the process's end. `status` is a wait status, None if nobody could wait for it."""

    status: int | None
    asked: Reason | None = None  # the stop that was asked of it
    killed_by_us: bool = False  # it did not obey within its grace
    out_of_memory: bool = False  # the kernel killed something for memory meanwhile

    @property
    def code(self) -> int | None:
        return None if self.status is None or self.status & 0x7F else (self.status >> 8) & 0xFF

    @property
    def signal_name(self) -> str | None:
        number = 0 if self.status is None else self.status & 0x7F
        return (
            signal.Signals(number).name if number in set(signal.Signals) else (f"signal {number}" if number else None)
        )


def judge(end: Mapping[str, Any] | None, seen: Exit, **facts: Any) -> Outcome:
    """The attempt's one outcome; `facts` are passed on (first_step, last_step, seen_by, ...)."""
    reason, detail = _reason(end, seen)
    if reason in (Reason.PREEMPTED, Reason.PAUSED) and facts.get("first_step") is None:
        detail = "stopped before its first step: the next attempt starts over"
    return Outcome(
        reason=reason,
        detail=detail,
        exit_code=seen.code,
        signal=seen.signal_name,
        failure=_failure(end) if end is not None and reason not in (*_STOPS, Reason.SUCCEEDED) else None,
        **facts,
    )


def _reason(end: Mapping[str, Any] | None, seen: Exit) -> tuple[Reason, str]:
    told = _TOLD.get(str(end.get("outcome"))) if end is not None else None
    if told is Reason.SUCCEEDED and seen.status in (0, None):
        return told, "finished"
    if seen.asked is Reason.CANCELLED or (seen.asked is not None and (told is None or told in _STOPS)):
        return _asked(seen.asked, seen, told)
    if told is not None and told is not Reason.SUCCEEDED:
        return told, _told_detail(told, end or {})
    if told is Reason.SUCCEEDED:
        return (
            Reason.KILLED if seen.signal_name else Reason.USER_ERROR,
            f"finished, and then ended with {_status(seen)}",
        )
    return _silent(seen)


def _asked(asked: Reason, seen: Exit, told: Reason | None) -> tuple[Reason, str]:
    if told is None and seen.killed_by_us:
        return asked, f"{_OBEYED[asked]}; it did not stop within its grace and was killed"
    return asked, _OBEYED[asked]


def _told_detail(told: Reason, end: Mapping[str, Any]) -> str:
    if told in _STOPS:
        return _OBEYED[told]
    failure = _failure(end)
    if failure is None:
        return f"ended with {told.value}"
    first_line = (failure.message or "").strip().splitlines()[:1]
    return f"{failure.type}: {first_line[0][:300]}" if first_line else str(failure.type)


def _silent(seen: Exit) -> tuple[Reason, str]:
    """Without an end line: the process died on the way."""
    if seen.signal_name is not None:
        if seen.signal_name == "SIGKILL" and seen.out_of_memory:
            return Reason.OOM_HOST, "the kernel killed it because the host's memory was full: use less, or add memory"
        return Reason.KILLED, f"the training process was killed ({seen.signal_name})"
    if seen.code is None:
        return Reason.KILLED, "the training process is gone, and nobody saw how it ended"
    if seen.code == 0:
        return Reason.USER_ERROR, "exited 0 without finishing: the program left by os._exit or the like; let it return"
    return Reason.USER_ERROR, f"exited with code {seen.code} without finishing: its output tells more"


def _status(seen: Exit) -> str:
    return f"{seen.signal_name}" if seen.signal_name else f"exit code {seen.code}"


def _failure(end: Mapping[str, Any]) -> Failure | None:
    error = end.get("error")
    if not isinstance(error, dict):
        return None
    known = {name: error.get(name) for name in ("type", "message", "traceback")}
    return Failure(**{name: value[:_MAX_CHARS] if isinstance(value, str) else None for name, value in known.items()})
