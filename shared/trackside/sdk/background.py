"""One piece of work at a time beside the training loop."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs one function at a time in a thread; what it raises waits for whoever asks."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._impatient = False

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin; does the work here and now where no thread can be had."""
        # A daemon: an exit handler of the interpreter must not wait for it, `settle` does where waiting is right.
        thread = threading.Thread(target=self._run, args=(work,), name="trackside-checkpoint", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads for this user
            self._run(work)
        else:
            self._thread, self._impatient = thread, False

    def settle(self) -> None:
        """Wait until nothing runs."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def settle_within(self, limit_s: float) -> bool:
        """Wait so long, once for each piece of work; whether nothing runs now."""
        if self._thread is not None and not self._impatient:
            self._thread.join(limit_s)
            self._impatient = True
        return not self.busy

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- it is raised in the training loop
            self.failure = error
