"""When silence may be judged, on a clock that is moved by hand: TTL 4 s, margin 1 s."""

from __future__ import annotations

import pytest

from trackside_supervisor.clearsight import ClearSight


@pytest.fixture
def sight() -> ClearSight:
    """One that has looked each second since 0, at a server whose clock is 1000 s ahead, and sees clearly at 9."""
    found = ClearSight(4.0, 1.0)
    for second in range(10):
        found.begin(second)
        found.server_said(1_000_000 + second * 1000, second)
    return found


def test_it_sees_clearly_after_two_ttls_and_a_margin(sight: ClearSight) -> None:
    assert sight.is_clear(9.0)
    assert not ClearSight(4.0, 1.0).is_clear(-1.0)
    first = ClearSight(4.0, 1.0)
    first.begin(100.0)
    assert not first.is_clear(108.9)
    assert first.is_clear(109.0)


def test_a_gap_blinds_it(sight: ClearSight) -> None:
    sight.begin(10.9)
    assert sight.is_clear(10.9)
    sight.begin(13.0)
    assert not sight.is_clear(13.0)
    assert sight.is_clear(22.0)


def test_a_gap_in_the_middle_of_a_round_blinds_it_and_short_pieces_do_not_hide_a_long_round(sight: ClearSight) -> None:
    sight.check(10.5)
    assert sight.is_clear(10.5)
    sight.check(11.5)
    assert not sight.is_clear(11.5)
    again = ClearSight(4.0, 1.0)
    again.begin(0.0)
    for moment in (1.0, 2.5):
        again.check(moment)
    again.begin(3.0)
    assert not again.is_clear(9.0)


@pytest.mark.parametrize("jump_ms", [-2_100, 2_100, 3_600_000])
def test_a_server_s_clock_that_jumps_or_is_another_one_blinds_it(sight: ClearSight, jump_ms: int) -> None:
    sight.begin(10)
    sight.server_said(1_010_000 + jump_ms, 10)
    assert not sight.is_clear(10)
    sight.begin(11)
    sight.server_said(1_011_000 + jump_ms, 11)
    assert sight.is_clear(19)


def test_an_answer_that_took_long_is_no_jump(sight: ClearSight) -> None:
    sight.begin(10)
    sight.server_said(1_010_000 - 1_500, 10)
    assert sight.is_clear(10)
