"""A worker's own look at its GPU: before a training starts, and after one ended badly.

Between the agent's newest sample and the start of an attempt another process may have taken the memory, or the attempt
before may not have given it back yet. So a claimed attempt waits here until its GPU is free, and is handed back when
that takes too long: it is never started into memory that is not there.
"""

from __future__ import annotations

import time
from typing import Any, Final

from trackside.models import Slot
from trackside_trainer.gpuguard import Seen, State, judge
from trackside_trainer.samples import GpuLook

_LOOK_LIMIT_S: Final = 10.0  # a driver that has to wake its devices takes seconds
_AGAIN_S: Final = 0.25
_GONE_S: Final = 5.0  # long enough for the agent to block the slot, so that the attempt does not come straight back


class FirstLook:
    """Whether a slot's GPU is free for the attempt that is to start; a slot without one is.

    One for all attempts of a slot: what is used on its GPU without work is learned over time.
    """

    def __init__(self, slot: Slot, *, limit_s: float) -> None:
        self._uuid = slot.gpu_uuid
        self._limit_s = limit_s
        self._seen = Seen()
        self._look: GpuLook | None = None
        self._next_s = self._until_s = 0.0
        self._free = True
        self._words = ""
        self.refused: str | None = None  # why the attempt is to be handed back

    def begin(self) -> None:
        """Another attempt comes: the GPU is to be looked at."""
        self._free = self._uuid is None
        self._until_s = time.monotonic() + self._limit_s
        self._next_s, self._words, self.refused = 0.0, "the driver does not answer: try `nvidia-smi`", None

    def is_free(self) -> bool:
        """Whether the attempt may begin; asked again and again, and never waits."""
        if self._free or self.refused is not None:
            return self._free
        now_s = time.monotonic()
        if self._look is None and now_s >= self._next_s:
            self._look = GpuLook(limit_s=_LOOK_LIMIT_S)
        if self._look is not None and self._look.done:
            self._free, self.refused = self._judged(self._look.gpus, now_s)
            self._look, self._next_s = None, now_s + _AGAIN_S
        return self._free

    def _judged(self, gpus: list[dict[str, Any]] | None, now_s: float) -> tuple[bool, str | None]:
        """Whether the attempt may begin, and why it is to be handed back; neither: it waits."""
        assert self._uuid is not None  # noqa: S101 -- else it is free
        if gpus is not None:
            verdict, self._seen = judge(gpus, self._uuid, self._seen, now_s)
            if verdict.state is State.FREE:
                return True, None
            gone = verdict.state is State.GONE
            self._words = f"GPU {self._uuid} is gone: {verdict.words}" if gone else verdict.words
            if gone and now_s >= self._until_s - self._limit_s + _GONE_S:
                return False, f"handed back before it started: {self._words}"
        if now_s < self._until_s:
            return False, None
        return False, f"handed back before it started, since its GPU did not get free: {self._words}"


class LastLook:
    """Whether a slot's GPU is still there after its attempt ended badly."""

    def __init__(self, slot: Slot, *, ended_badly: bool) -> None:
        self._uuid = slot.gpu_uuid
        self._look = GpuLook(limit_s=_LOOK_LIMIT_S) if ended_badly and slot.gpu_uuid is not None else None

    def done(self) -> bool:
        """Whether it is known, or will never be; waits a moment for it."""
        return self._look is None or self._look.wait(0.02)

    @property
    def gone(self) -> str | None:
        """The UUID of a GPU that the driver does not show any more."""
        if self._uuid is None or self._look is None or self._look.gpus is None:
            return None
        verdict, _ = judge(self._look.gpus, self._uuid, Seen(), 0.0, own=())
        return self._uuid if verdict.state is State.GONE else None
