"""Since when this process has seen without a gap: silence is judged only after two TTLs and a margin of that; pure."""

from __future__ import annotations


class ClearSight:
    """All times are this process's own, in s, of a clock that also runs while the machine sleeps."""

    def __init__(self, ttl_s: float, margin_s: float) -> None:
        self._gap_s = ttl_s / 2
        self._wait_s = 2 * ttl_s + margin_s
        self._last_s: float | None = None
        self._ahead_s: float | None = None
        self._clear_from_s = 0.0

    def begin(self, now_s: float) -> None:
        """Note that a round begins; a gap since the last one began blinds this process."""
        self.check(now_s)
        self._last_s = now_s

    def check(self, now_s: float) -> None:
        """In the middle of a round, behind its answers: a gap since it began blinds this process too."""
        if self._last_s is None or now_s - self._last_s > self._gap_s:
            self.blind(now_s)

    def server_said(self, server_ms: int, now_s: float) -> None:
        """Compare the server's clock with ours: deadlines mean nothing where it has jumped, or is another one."""
        before_s, self._ahead_s = self._ahead_s, server_ms / 1000 - now_s
        if before_s is not None and abs(self._ahead_s - before_s) > self._gap_s:
            self.blind(now_s)

    def blind(self, now_s: float) -> None:
        """Everybody is to be heard out from now on."""
        self._clear_from_s = now_s + self._wait_s

    def is_clear(self, now_s: float) -> bool:
        """Whether silence may be judged."""
        return now_s >= self._clear_from_s
