"""An attempt's folders made ready in a thread of their own.

A large snapshot, a disk that is busy or far away, or checkpoints that must be copied take their time, and a worker that
waited for them would miss its beats and be taken for dead. A disk that hangs gives them back never: then the attempt is
given up, and the slot takes nothing while the thread is there, since no process may be forked beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from trackside.sdk.context import AttemptContext


class Preparation:
    """Runs `make` in a thread from now on, for `limit_s` at most, and for `grace_s` once its end was asked for."""

    def __init__(self, make: Callable[[], AttemptContext], *, limit_s: float, grace_s: float) -> None:
        self._until_s, self._grace_s = time.monotonic() + limit_s, grace_s
        self._asked = False
        self._made: AttemptContext | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(make,), name="preparation", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[], AttemptContext]) -> None:
        try:
            self._made = make()
        except BaseException as error:  # noqa: BLE001 -- raised again by `result`
            self._error = error

    @property
    def done(self) -> bool:
        """Whether `result` would not wait."""
        return not self._thread.is_alive()

    def overdue(self, *, asked: bool) -> bool:
        """Whether to wait no longer; `asked` is whether the attempt was asked to stop meanwhile."""
        now_s = time.monotonic()
        if asked and not self._asked:
            self._asked, self._until_s = True, min(self._until_s, now_s + self._grace_s)
        return not self.done and now_s >= self._until_s

    def result(self) -> AttemptContext:
        """What `make` returned; raises what it raised. No thread is left, so that forking is safe."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None  # noqa: S101 -- one of both is there
        return self._made


class PreparationGate:
    """Keeps a slot from work while a preparation that was given up still hangs."""

    def __init__(self) -> None:
        self.words: str | None = None  # why the slot takes nothing, for people; None: it does
        self._left: Preparation | None = None

    def close(self, preparation: Preparation) -> None:
        """This one was given up."""
        self._left = preparation
        self.words = (
            "the folders of an attempt have not become ready: the disk hangs; see what is wrong with it, or restart "
            "the machine"
        )

    def passes(self) -> bool:
        """Whether work may come in."""
        if self._left is not None and self._left.done:
            self._left = self.words = None
        return self._left is None
