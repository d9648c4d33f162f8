"""The agent's watch over its slots' GPUs: what each sample brings to the slots' records and to the events.

A slot begins as blocked and is opened by the first look that finds its GPU free. Afterwards memory must be in use in
two looks one after the other before its slot is blocked: the sample that a job's end runs into still shows the job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from trackside import logs
from trackside.errors import Conflict, NotFound
from trackside.models import Slot
from trackside.store import Store
from trackside_trainer.gpuguard import DRAIN, Seen, State, Verdict, judge

NOT_YET: Final = "its GPU was not looked at yet: should this stay so, try `nvidia-smi`"
NO_ANSWER: Final = "the driver does not answer: try `nvidia-smi`; should that hang too, restart the machine"
_AGAIN_S: Final = 30.0  # then all is told again: a server that came back older has what stood there before


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What a slot's record says of its GPU."""

    blocked: str | None = None
    throttled: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _News:
    """An event to tell."""

    cause: str
    data: dict[str, Any]


class GpuWatch:
    """Judges each sample, and tells the store what has changed. Never waits."""

    def __init__(self, slots: Iterable[Slot], *, wait_s: float) -> None:
        self._uuids = {slot.id: slot.gpu_uuid for slot in slots if slot.gpu_uuid is not None}
        self._wait_s = wait_s
        self._seen = dict.fromkeys(self._uuids, Seen())
        self._standing: dict[str, Standing] = {}
        self._keys: dict[str, object] = {}  # what the words of `blocked` were made from
        self._told: dict[str, Standing] = {}
        self._again_s = 0.0
        self._mute = False
        self._news: dict[str, deque[_News]] = {name: deque(maxlen=100) for name in self._uuids}
        self._to_cordon: dict[str, str] = {}  # why, until it was done
        self._quarantined: set[str] = set()
        self._log = logs.get()

    def look(self, gpus: Sequence[Mapping[str, Any]], own: Mapping[str, Sequence[int]], now_s: float) -> None:
        """Judge a sample; `own` are the processes of the attempt on each slot that has one."""
        self._tell_all_now_and_then(now_s)
        for name, uuid in self._uuids.items():
            if self._mute:
                self._tell(name, "gpu driver answers again", uuid)
            before = self._seen[name]
            verdict, self._seen[name] = judge(gpus, uuid, before, now_s, own=own.get(name))
            self._take_errors(name, uuid, verdict)
            blocked = self._blocked(name, uuid, verdict, before, now_s)
            self._take_throttle(name, verdict)
            self._standing[name] = Standing(blocked=blocked, throttled=", ".join(verdict.throttled) or None)

        self._mute = False

    def no_answer(self, now_s: float) -> None:
        """The driver has told nothing for long: no slot of its GPUs takes a job until the next sample."""
        self._tell_all_now_and_then(now_s)
        if self._mute:
            return
        self._mute = True
        self._keys.clear()  # the words of `blocked` are to be made again
        for name, uuid in self._uuids.items():
            self._tell(name, "gpu driver does not answer", uuid, what=NO_ANSWER)
            self._standing[name] = replace(self._standing.get(name, Standing()), blocked=NO_ANSWER)

    def _tell_all_now_and_then(self, now_s: float) -> None:
        if now_s >= self._again_s:
            self._again_s = now_s + _AGAIN_S
            self._told = {}

    def forget_told(self) -> None:
        """The records were written anew, as not looked at."""
        self._told = {}

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell."""
        return any(self._told.get(name) != standing for name, standing in self._standing.items()) or any(
            self._news.values()
        )

    def tell(self, store: Store) -> None:
        """Write what changed; raises BusError, and is then to be called again."""
        for name, standing in self._standing.items():
            news = self._news[name]
            if self._told.get(name) == standing and not news:
                continue
            try:
                self._cordon(store, name)  # first: what fails before the slot counts as told is asked for again
                store.tell_gpu(
                    name, blocked=standing.blocked, throttled=standing.throttled,
                    events=[(each.cause, each.data) for each in news],
                )  # fmt: skip
            except Conflict as error:  # others write it without a pause: the next look tells it
                self._log.warning("slot_not_told", slot=name, why=error.message)
                continue
            self._told[name] = standing
            news.clear()

    def _cordon(self, store: Store, name: str) -> None:
        why = self._to_cordon.get(name)
        if why is None:
            return
        try:
            store.cordon(name, cordoned=True, why=why)
        except NotFound:  # a server that came back empty; its slots are written anew, and then all is told again
            self._log.warning("slot_unknown", slot=name)
        else:
            del self._to_cordon[name]

    def _take_errors(self, name: str, uuid: str, verdict: Verdict) -> None:
        for xid in dict.fromkeys(verdict.faults):
            self._tell(name, "gpu error", uuid, xid=xid, what="an application's fault: nothing is done")
        if verdict.drain is not None:
            why = f"Xid {verdict.drain}: {DRAIN[verdict.drain]}"
            self._to_cordon[name] = why
            self._tell(name, "gpu broken", uuid, xid=verdict.drain, what=why)

    def _take_throttle(self, name: str, verdict: Verdict) -> None:
        old, new = self._standing.get(name, Standing()).throttled, ", ".join(verdict.throttled) or None
        if new is not None and old is None:
            self._tell(name, "gpu throttled", self._uuids[name] or "", what=new)
        elif new is None and old is not None:
            self._tell(name, "gpu at full speed again", self._uuids[name] or "")

    def _blocked(self, name: str, uuid: str, verdict: Verdict, before: Seen, now_s: float) -> str | None:
        """Why the slot takes no job now, in words that change only with the facts behind them."""
        self._tell_moves(name, uuid, verdict, before, now_s)
        if verdict.state is State.FREE:
            self._keys.pop(name, None)
            return None
        if verdict.state is State.BUSY and before.state is State.FREE:  # the second look decides
            return self._standing.get(name, Standing()).blocked
        pids = tuple(holder.pid for holder in verdict.holders)
        key = (verdict.state, name in self._quarantined, pids, None if pids else (verdict.used_mib or 0) // 1024)
        if self._keys.get(name) == key:
            return self._standing[name].blocked
        self._keys[name] = key
        if verdict.state is State.GONE:
            return f"its GPU {uuid} is gone: {verdict.words}"
        since = "quarantined, since its GPU does not get free" if name in self._quarantined else "its GPU is in use"
        return f"{since}: {verdict.words}"

    def _tell_moves(self, name: str, uuid: str, verdict: Verdict, before: Seen, now_s: float) -> None:
        """Events about a GPU that goes, comes back, does not get free, or does."""
        if verdict.state is State.GONE and before.state is not State.GONE:
            self._tell(name, "gpu gone", uuid, what=verdict.words)
        elif verdict.state is not State.GONE and before.state is State.GONE:
            self._tell(name, "gpu back", uuid)
        if verdict.state is not State.BUSY:
            if name in self._quarantined:
                self._tell(name, "gpu free again", uuid)
            self._quarantined.discard(name)
        elif now_s - verdict.since_s >= self._wait_s and name not in self._quarantined:
            self._quarantined.add(name)
            pids = [holder.pid for holder in verdict.holders]
            self._tell(
                name, "gpu not free", uuid, what=verdict.words, pids=pids, used_mib=verdict.used_mib,
                waited_s=round(now_s - verdict.since_s, 1),
            )  # fmt: skip

    def _tell(self, name: str, cause: str, uuid: str, **data: Any) -> None:
        self._log.warning("gpu", slot=name, cause=cause, **data)
        self._news[name].append(_News(cause=cause, data={"gpu": uuid, **data}))
