"""Whether a GPU may be given a job: judged from what its driver shows. Pure.

    free       its memory is back to what it is without work
    busy       somebody holds memory on it: a ghost of ours or a stranger
    gone       the driver does not show it any more

Besides, and whatever the state: `drain`, an error of the hardware, after which a person must act; and `throttled`, why
it runs more slowly than it could, which is shown and is no reason to restart anything.

Xids are the driver's numbers for errors, by NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors):

    an application's fault, the GPU goes on    13 31 32 43 45 69 80 94 and whatever is not listed as follows
    the GPU must be reset                      46 62 64 95 110 119 120 136 140 143 155 156 158
    the machine or the board needs a person    48 54 74 79 154

On 109 (a context switch that timed out) the sources disagree; here it is the application's.

Memory is judged by the device's total, since in a container the driver may hide who holds it. What draws on a screen is
taken off; what is used without any work is learned as the least that was ever seen, and is never believed to be more
than `_IDLE_MIB` or `_IDLE_SHARE`. What the driver does not tell blocks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

RESET: Final = "it must be reset: `nvidia-smi --gpu-reset`, or restart the machine"
DRAIN: Final = {
    46: f"the GPU stopped processing; {RESET}",
    48: "a double-bit error in its memory; run the driver's diagnosis, and replace it if this happens again",
    54: "its auxiliary power is not connected: look at the cables",
    62: f"its controller halted; {RESET}",
    64: f"a bad row of its memory could not be taken out of use; {RESET}",
    74: "an error on NVLink: look at the links and their connectors",
    79: "it has fallen off the bus: restart the machine, and look at its power and its seat",
    95: f"an error in its memory that could not be contained; {RESET}",
    110: f"a security fault; {RESET}",
    119: f"its system processor does not answer; {RESET}",
    120: f"its system processor failed; {RESET}",
    136: f"its link could not be trained; {RESET}",
    140: f"an error in its memory that was not recovered; {RESET}",
    143: f"it could not be initialised; {RESET}",
    154: "the driver asks for a recovery action: `nvidia-smi -q` says which",
    155: f"a fault of NVLink; {RESET}",
    156: f"memory was taken out of use; {RESET}",
    158: f"a fatal timeout; {RESET}",
}
# Bits of the driver's clock event reasons. A power cap (0x4) is no news: a well used GPU runs at its limit.
THROTTLES: Final = {
    0x08: "hardware slowdown",
    0x20: "heat (the driver slows it down)",
    0x40: "heat (the hardware slows it down)",
    0x80: "power brake",
}
_IDLE_MIB: Final = 1024.0
_IDLE_SHARE: Final = 0.05
_TOLERANCE_MIB: Final = 256.0  # less than a CUDA context with a program in it
_TOLERANCE_SHARE: Final = 0.01
_THROTTLED_FOR_S: Final = 10.0  # after its last sign, so that one that comes and goes is told once


class State(StrEnum):
    """What a job may expect of a GPU."""

    FREE = "free"
    BUSY = "busy"
    GONE = "gone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process with memory on a GPU; the driver may not say how much."""

    pid: int
    used_mib: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What is remembered of one GPU between two looks; times are monotonic."""

    idle_mib: float | None = None  # the least memory in use that was ever seen
    state: State | None = None  # None: never looked at
    since_s: float = 0.0  # of `state`
    xid_at_ns: int = 0  # of the newest Xid that was judged
    throttled_until_s: float | None = None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One look's answer."""

    state: State
    since_s: float
    holders: tuple[Holder, ...] = ()
    used_mib: float | None = None
    drain: int | None = None  # an Xid that came since the last look
    faults: tuple[int, ...] = ()  # the Xids since the last look that are an application's
    throttled: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Why it is not free, for people."""
        if self.state is State.GONE:
            return "the driver does not show it any more: try `nvidia-smi -L`"
        held = [f"process {each.pid} holds {_mib(each.used_mib)}" for each in self.holders]
        if not held:
            held = [f"{_mib(self.used_mib)} of its memory are in use, and the driver does not show by whom"]
        return ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")


def judge(
    gpus: Iterable[Mapping[str, Any]], uuid: str, seen: Seen, now_s: float, *, own: Sequence[int] | None = None
) -> tuple[Verdict, Seen]:
    """What the newest sample says of one GPU. `own`: the processes of our attempt on it; None: there is none.

    While an attempt of ours runs, its memory is expected: the GPU is `free` of others, as far as this can tell.
    """
    gpu = next((gpu for gpu in gpus if gpu.get("uuid") == uuid), None)
    here = gpu if gpu is not None and not gpu.get("lost") else None
    holders = _holders(here or {}, own or ())
    state, idle_mib = State.GONE, seen.idle_mib
    if here is not None:
        state = State.FREE
        if own is None:
            idle_mib, free = _free(here, holders, seen.idle_mib)
            state = State.FREE if free else State.BUSY
    since_s = seen.since_s if seen.state is state else now_s
    xids, xid_at_ns = _new_xids(gpu or {}, seen.xid_at_ns)
    throttled, until_s = _throttled(here or {}, seen, now_s)
    verdict = Verdict(
        state=state,
        since_s=since_s,
        holders=holders if state is State.BUSY else (),
        used_mib=_number((here or {}).get("memory_used_mib")),
        drain=next((xid for xid in xids if xid in DRAIN), None),
        faults=tuple(xid for xid in xids if xid not in DRAIN),
        throttled=throttled,
    )
    return verdict, replace(
        seen, idle_mib=idle_mib, state=state, since_s=since_s, xid_at_ns=xid_at_ns, throttled=throttled,
        throttled_until_s=until_s,
    )  # fmt: skip


def _holders(gpu: Mapping[str, Any], own: Sequence[int]) -> tuple[Holder, ...]:
    """Who computes on it besides our attempt, the largest first."""
    rows = [row for row in gpu.get("processes") or () if row.get("kind") == "compute" and row.get("pid") not in own]
    found = [Holder(pid=int(row["pid"]), used_mib=_number(row.get("used_mib"))) for row in rows]
    return tuple(sorted(found, key=lambda holder: -(holder.used_mib or 0)))


def _free(gpu: Mapping[str, Any], holders: Sequence[Holder], idle_mib: float | None) -> tuple[float | None, bool]:
    """The least memory ever in use, and whether no more than that is in use now."""
    used_mib, total_mib = _number(gpu.get("memory_used_mib")), _number(gpu.get("memory_total_mib"))
    tolerance_mib = max(_TOLERANCE_MIB, (total_mib or 0) * _TOLERANCE_SHARE)
    held_mib = sum(holder.used_mib or 0 for holder in holders)
    if used_mib is None:
        return idle_mib, held_mib <= tolerance_mib
    screens = [row for row in gpu.get("processes") or () if row.get("kind") == "graphics"]
    in_use_mib = used_mib - sum(_number(row.get("used_mib")) or 0 for row in screens)
    most_mib = max(_IDLE_MIB, (total_mib or 0) * _IDLE_SHARE)
    idle_mib = min(most_mib, in_use_mib if idle_mib is None else min(idle_mib, in_use_mib))
    return idle_mib, held_mib <= tolerance_mib and in_use_mib <= idle_mib + tolerance_mib


def _new_xids(gpu: Mapping[str, Any], after_ns: int) -> tuple[list[int], int]:
    new = [entry for entry in gpu.get("xids") or () if entry["at_ns"] > after_ns]
    return [int(entry["xid"]) for entry in new], max((entry["at_ns"] for entry in new), default=after_ns)


def _throttled(gpu: Mapping[str, Any], seen: Seen, now_s: float) -> tuple[tuple[str, ...], float | None]:
    bits = gpu.get("clock_event_reasons")
    found = tuple(words for bit, words in THROTTLES.items() if isinstance(bits, int) and bits & bit)
    if found:
        return found, now_s + _THROTTLED_FOR_S
    if seen.throttled_until_s is not None and now_s < seen.throttled_until_s:
        return seen.throttled, seen.throttled_until_s
    return (), None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mib(value: float | None) -> str:
    return "memory" if value is None else f"{value:.0f} MiB"
