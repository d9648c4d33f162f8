"""How far apart entries are sent."""

from __future__ import annotations

import pytest

from trackside.bus import keys
from trackside_trainer.spacing import wait_s

TICK_S, DAY_S = 0.05, 86_400.0


@pytest.mark.parametrize(("limit", "days"), [(keys.METRICS_MAXLEN, 30.0), (keys.OUTPUT_MAXLEN, 9.0)])
def test_a_stream_holds_a_run_of_weeks_from_its_beginning(limit: int, days: float) -> None:
    lasts_s = sum(max(TICK_S, wait_s(entries, limit)) for entries in range(limit))
    assert lasts_s > days * DAY_S


def test_what_begins_is_seen_at_once_and_nothing_waits_longer_than_a_minute() -> None:
    assert wait_s(0, 200_000) == wait_s(49_999, 200_000) == 0.0
    assert wait_s(50_000, 200_000) == 1.0
    assert max(wait_s(entries, 200_000) for entries in range(0, 300_000, 1_000)) == 60.0
