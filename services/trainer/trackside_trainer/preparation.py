"""An attempt's folders made ready in a thread of their own.

A large snapshot, a disk that is busy or far away, or checkpoints that must be copied take their time, and a worker that
waited for them would miss its beats and be taken for dead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from trackside.sdk.context import AttemptContext


class Preparation:
    """Runs `make` in a thread from now on."""

    def __init__(self, make: Callable[[], AttemptContext]) -> None:
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

    def result(self) -> AttemptContext:
        """What `make` returned; raises what it raised. No thread is left, so that forking is safe."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._made is not None  # noqa: S101 -- one of both is there
        return self._made
