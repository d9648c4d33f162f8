"""Why an attempt ended: from its end line, its exit status, and what was asked of it. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trackside.models import Failure, Outcome, Reason
from trackside.sdk.page import ControlPage
from trackside.story import span
from trackside_trainer.evidence import EXIT_CODES

# Both journal and store have these words for the same thing.
_TOLD: Final = {reason.value: reason for reason in Reason if reason not in (Reason.STALLED, Reason.LOST)}
_STOPS: Final = frozenset(
    {Reason.PREEMPTED, Reason.PAUSED, Reason.CANCELLED, Reason.TIMEOUT, Reason.STALLED, Reason.FENCED}
)
# How a process ends whose GPU goes away; which of them depends on what it was doing.
_OF_A_LOST_GPU: Final = frozenset({Reason.CUDA_ERROR, Reason.KILLED, Reason.USER_ERROR, Reason.OOM_GPU})
# What a process mostly brings upon itself.
_OF_ITS_OWN: Final = {
    "SIGSEGV": "a crash in native code",
    "SIGBUS": "a crash in native code, or shared memory that is full",
    "SIGFPE": "a crash in native code",
    "SIGILL": "native code that is not for this processor",
    "SIGABRT": "a library gave up",
    "SIGPIPE": "nobody reads what it writes",
    "SIGXCPU": "its limit of processor time was reached",
    "SIGXFSZ": "its limit of file size was reached",
}
CRASHES: Final = frozenset({"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT"})  # faulthandler tells where
_MAX_CHARS: Final = 40_000
# The message itself, or that of the error which led to "DataLoader worker (pid(s) ...) exited unexpectedly".
_LOADER_GONE: Final = frozenset({"ConnectionResetError", "EOFError"})  # seen before torch knows that it died
_LOADER_KILLED: Final = re.compile(r"DataLoader worker \(pid \d+\) is killed by signal: Killed\b")
_OBEYED: Final = {
    Reason.PREEMPTED: "stopped at a step boundary to make room",
    Reason.PAUSED: "paused at a step boundary",
    Reason.CANCELLED: "stopped as asked",
    Reason.TIMEOUT: "its time limit was reached",
    Reason.STALLED: "it made no progress",
    Reason.FENCED: "a newer attempt owns the job",
}
_LEFT: Final = {
    Reason.PREEMPTED: "asked to make room",
    Reason.PAUSED: "asked to pause",
    Reason.CANCELLED: "asked to stop",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """What was seen of the process's end. `status` is a wait status, None if nobody could wait for it."""

    status: int | None
    asked: Reason | None = None  # the stop that was asked of it
    killed_by_us: bool = False  # it did not obey within its grace
    why: str | None = None  # the stop's own words for it
    out_of_memory: str | None = None  # the kernel killed for memory meanwhile, and perhaps this process or its loader
    lost_gpu: str | None = None  # the UUID of its GPU, which the driver does not show any more
    stepless: bool = False  # it never used the SDK, so whether it had come to a step is not known

    @property
    def code(self) -> int | None:
        return None if self.status is None or self.status & 0x7F else (self.status >> 8) & 0xFF

    @property
    def signal_name(self) -> str | None:
        number = 0 if self.status is None else self.status & 0x7F
        return (
            signal.Signals(number).name if number in set(signal.Signals) else (f"signal {number}" if number else None)
        )


def end_of_page(page: ControlPage) -> dict[str, Any] | None:
    """The end as the page tells it, where the disk was too full for the end line; None if the process died."""
    end = page.end
    if end is None:
        return None
    return {"k": "end", "outcome": end.outcome, "bad_step": end.bad_step, "early": end.early, "unwritten": True}


def judge(end: Mapping[str, Any] | None, seen: Exit, **facts: Any) -> Outcome:
    """The attempt's one outcome; `facts` are passed on (first_step, last_step, seen_by, ...)."""
    reason, detail = _reason(end, seen)
    if seen.lost_gpu is not None and reason in _OF_A_LOST_GPU:
        reason, detail = Reason.GPU_LOST, f"the driver does not show its GPU {seen.lost_gpu} any more; {detail}"
    if end is not None and end.get("unwritten") is True and seen.signal_name is None:  # else it died before it could
        detail = f"{detail}; its disk did not take the end of its journal: free space on it"
    stranger = reason is Reason.PREEMPTED and seen.asked is None and seen.status is not None
    if reason in (Reason.PREEMPTED, Reason.PAUSED) and facts.get("first_step") is None:
        by = " by somebody other than Trackside (SIGTERM)" if stranger else ""
        when = f"after {span(facts.get('ran_ms', 0) / 1000)}; no steps are known of it"
        detail = f"stopped{by} {when if seen.stepless else 'before its first step'}: the next attempt starts over"
    return Outcome(
        reason=reason,
        detail=detail,
        exit_code=seen.code,
        signal=seen.signal_name,
        failure=_failure(end) if end is not None and reason not in (*_STOPS, Reason.SUCCEEDED) else None,
        bad_step=_whole(end.get("bad_step")) if end is not None and reason is Reason.DIVERGED else None,
        stranger=stranger,
        **facts,
    )


def _reason(end: Mapping[str, Any] | None, seen: Exit) -> tuple[Reason, str]:
    told = _TOLD.get(str(end.get("outcome"))) if end is not None else None
    if told is Reason.SUCCEEDED and seen.status in (0, None):
        return _well(end or {}, seen)
    left = told is Reason.USER_ERROR and _left(end or {})
    if seen.asked is Reason.PAUSED:  # it has paused if it says so; what died on the way, or left otherwise, has not
        asked = Reason.PAUSED if told is Reason.PAUSED or left else None
    else:
        asked = seen.asked if seen.asked is Reason.CANCELLED or told is None or told in _STOPS or left else None
    if asked is not None:
        return _asked(asked, seen, told)
    if told is Reason.PREEMPTED and seen.status is not None:
        return told, "somebody other than Trackside asked it to stop (SIGTERM), and it did at a step boundary"
    if seen.out_of_memory and told is Reason.USER_ERROR and loader_was_killed(end):
        return Reason.OOM_HOST, "the kernel killed a DataLoader worker because the memory was full: use fewer of them"
    if told is not None and told is not Reason.SUCCEEDED:
        return told, _told_detail(told, end or {})
    if told is Reason.SUCCEEDED:
        return (
            Reason.KILLED if seen.signal_name else Reason.USER_ERROR,
            f"finished, and then ended with {_status(seen)}",
        )
    return _silent(seen)


def _left(end: Mapping[str, Any]) -> bool:
    """Whether an error may be how a program answers a stop: by `sys.exit`, or from a SIGTERM handler of its own."""
    failure = _failure(end)
    return end.get("early") is True or (failure is not None and failure.type == "SystemExit")


def _well(end: Mapping[str, Any], seen: Exit) -> tuple[Reason, str]:
    """A program that ended well has finished, but for one with a handler of its own that left because it was asked."""
    if seen.asked is None or end.get("early") is not True:
        return Reason.SUCCEEDED, "finished"
    why = seen.why or _LEFT.get(seen.asked) or _OBEYED[seen.asked]
    return seen.asked, f"{why}; it ended by itself, before its end as far as is known"


def _asked(asked: Reason, seen: Exit, told: Reason | None) -> tuple[Reason, str]:
    why = seen.why or _OBEYED[asked]
    if told is None and seen.killed_by_us:
        return asked, f"{why}; it did not stop within its grace and was killed"
    if asked is Reason.STALLED and told in _STOPS:
        return asked, f"{why}; asked to stop, it went on to its next boundary and stopped there"
    return asked, why


def _told_detail(told: Reason, end: Mapping[str, Any]) -> str:
    if told in _STOPS:
        return _OBEYED[told]
    failure = _failure(end)
    if failure is None:
        return f"ended with {told.value}"
    first_line = (failure.message or "").strip().splitlines()[:1]
    if first_line and told is Reason.INVALID_JOB:  # our own words
        return first_line[0]
    return f"{failure.type}: {first_line[0][:300]}" if first_line else str(failure.type)


def loader_was_killed(end: Mapping[str, Any] | None) -> bool:
    """Whether torch says that a process which loaded data was killed from outside; it tells the signal, not by whom."""
    failure = _failure(end) if end is not None else None
    if failure is None:
        return False
    trace = failure.traceback or ""
    if failure.type in _LOADER_GONE:
        return "torch/utils/data/dataloader.py" in trace
    told = (failure.message or "").startswith("DataLoader worker (pid")
    return told and _LOADER_KILLED.search(f"{failure.message}\n{trace}") is not None


def _silent(seen: Exit) -> tuple[Reason, str]:
    """Without an end line: the process died on the way."""
    if seen.signal_name is not None:
        if seen.signal_name == "SIGKILL" and seen.out_of_memory:
            return Reason.OOM_HOST, "the kernel killed it because the memory was full: use less, or add memory"
        return Reason.KILLED, f"the training process was killed ({seen.signal_name}), {_sender(seen.signal_name)}"
    if seen.code is None:
        return Reason.KILLED, "the training process is gone, and nobody saw how it ended"
    if seen.code == 0:
        return Reason.USER_ERROR, "exited 0 without finishing: the program left by os._exit or the like; let it return"
    meaning = f" ({EXIT_CODES[seen.code]})" if seen.code in EXIT_CODES else ""
    return Reason.USER_ERROR, f"exited with code {seen.code}{meaning} without finishing: its output tells more"


def _sender(name: str) -> str:
    """Who is behind a signal that we did not send; of SIGKILL and the like the kernel does not say."""
    if name in _OF_ITS_OWN:
        return _OF_ITS_OWN[name]
    return "not by Trackside: the kernel does not say by whom"


def _status(seen: Exit) -> str:
    return f"{seen.signal_name}" if seen.signal_name else f"exit code {seen.code}"


def _failure(end: Mapping[str, Any]) -> Failure | None:
    error = end.get("error")
    if not isinstance(error, dict):
        return None
    known = {name: error.get(name) for name in ("type", "message", "traceback")}
    return Failure(**{name: value[:_MAX_CHARS] if isinstance(value, str) else None for name, value in known.items()})


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
