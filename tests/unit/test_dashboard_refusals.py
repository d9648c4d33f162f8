"""That a server refuses to write is told by the errors it counts, while they grow."""

from __future__ import annotations

from typing import Any

import pytest

from trackside_dashboard.refusals import FRESH_S, WORDS, Refusals


def stats(**counts: int) -> dict[str, Any]:
    """As redis-py reads `INFO errorstats`."""
    return {f"errorstat_{kind}": {"count": count} for kind, count in counts.items()}


@pytest.mark.parametrize("kind", list(WORDS))
def test_a_count_that_grows_is_told_until_it_has_rested(kind: str) -> None:
    refusals = Refusals()
    refusals.take(stats(**{kind: 3}, ERR=1), 100.0)
    assert refusals.now(100.0) is None, "it may have been long ago"
    refusals.take(stats(**{kind: 4}, ERR=9), 102.0)
    assert refusals.now(102.0) == kind
    refusals.take(stats(**{kind: 4}), 104.0)
    assert refusals.now(102.0 + FRESH_S) == kind
    assert refusals.now(102.1 + FRESH_S) is None


def test_other_errors_and_a_server_that_counts_none_are_no_refusal() -> None:
    refusals = Refusals()
    for now_s, told in enumerate([{}, stats(NOPERM=1), stats(NOPERM=9, WRONGTYPE=4), {"errorstat_OOM": "damaged"}]):
        refusals.take(told, float(now_s))
        assert refusals.now(float(now_s)) is None


def test_the_first_refusal_ever_is_seen() -> None:
    refusals = Refusals()
    refusals.take({}, 0.0)
    refusals.take(stats(OOM=1), 2.0)
    assert refusals.now(2.0) == "OOM"
