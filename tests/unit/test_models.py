"""The state chart: what may follow what."""

from __future__ import annotations

import pytest

from trackside.errors import InvalidJob
from trackside.ids import check_job_id, new_job_id, parse_rq_job_id, rq_job_id
from trackside.models import MOVES, TERMINAL, JobState


def test_every_state_has_its_moves_and_terminal_ones_have_none() -> None:
    assert set(MOVES) == set(JobState)
    assert {state for state, moves in MOVES.items() if not moves} == TERMINAL


def test_every_state_can_be_reached_and_every_live_one_can_end() -> None:
    reached = {JobState.QUEUED}
    while True:
        more = reached.union(*(MOVES[state] for state in reached))
        if more == reached:
            break
        reached = more
    assert reached == set(JobState)
    for state in set(JobState) - TERMINAL:
        seen = {state}
        while not seen & TERMINAL:
            seen |= set().union(*(MOVES[each] for each in seen))
        assert JobState.CANCELLED in seen or JobState.CANCELLED in set().union(*(MOVES[each] for each in seen))


def test_no_state_moves_to_itself() -> None:
    assert not [state for state in JobState if state.may_become(state)]


@pytest.mark.parametrize("name", ["Train My Net!", "", None, "ä" * 200, "-" * 80, "x" * 200])
def test_new_ids_are_ids_whatever_the_name(name: str | None) -> None:
    assert check_job_id(new_job_id(name)) != new_job_id(name)


@pytest.mark.parametrize("bad", ["", "-a", "a-", "A", "a_b", "a/b", "../x", "a" * 65, "a b", "a\n"])
def test_other_text_is_no_id(bad: str) -> None:
    with pytest.raises(InvalidJob):
        check_job_id(bad)


def test_rq_ids_lead_back_to_the_attempt() -> None:
    assert parse_rq_job_id(rq_job_id("a-b-1", 12)) == ("a-b-1", 12)
    for bad in ("a", "a_0", "a_-1", "../x_1", "a_1_x", "os.system_1", "_1"):
        with pytest.raises(InvalidJob):
            parse_rq_job_id(bad)
