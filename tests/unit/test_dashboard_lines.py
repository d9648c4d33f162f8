"""Curves: each step once, spikes and gaps kept, few points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackside.models import Batch
from trackside.series import canonical as reference
from trackside_dashboard import charts, lines
from trackside_dashboard.lines import Columns, Line, canonical, kept


def columns(*batches: tuple[int, Batch]) -> Columns:
    made = Columns()
    for attempt, batch in batches:
        made.add(attempt, batch)
    return made


def line(values: list[float]) -> Line:
    many = len(values)
    return Line(
        steps=np.arange(1, many + 1),
        at_ms=1_700_000_000_000 + np.arange(many) * 50,
        attempts=np.ones(many, dtype=np.int64),
        values=np.asarray(values, dtype=np.float64),
    )


def batch(steps: list[int], values: list[float | str | None]) -> Batch:
    return Batch(steps=tuple(steps), at_ms=tuple(1000 + step for step in steps), series={"loss": tuple(values)})


def test_redone_steps_show_the_newest_attempt_and_the_rest_stays() -> None:
    made = columns((1, batch([1, 2, 3, 4], [9, 8, 7, 6])), (2, batch([3], [1])))
    shown = canonical(made.lines()["loss"])
    assert list(shown.steps) == [1, 2, 3, 4]
    assert list(shown.values) == [9, 8, 1, 6]
    assert list(shown.attempts) == [1, 1, 2, 1]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 30), st.lists(st.sampled_from([1.5, 2.5, None, "NaN", "Infinity"]), min_size=1, max_size=8)
        ),
        max_size=6,
    )
)  # each attempt begins at some step and goes on from there
def test_it_agrees_with_the_library(attempts: list[tuple[int, list[float | str | None]]]) -> None:
    batches = [
        (number, batch(list(range(first, first + len(values))), values))
        for number, (first, values) in enumerate(attempts, 1)
    ]
    shown = {name: canonical(one) for name, one in columns(*batches).lines().items() if len(one)}
    expected = {name: points for name, points in reference(batches).items() if points}
    assert shown.keys() == expected.keys()
    for name, one in shown.items():
        steps, values, numbers = zip(*expected[name], strict=True)
        assert list(one.steps) == list(steps)
        assert list(one.attempts) == list(numbers)
        np.testing.assert_array_equal(one.values, values)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3000), st.integers(100, 1000))
def test_thinning_keeps_lowest_highest_first_and_last(values: list[float], limit: int) -> None:
    given_values = np.asarray(values)
    places = kept(given_values, limit)
    thinned = given_values[places]
    assert len(places) <= limit
    assert thinned.max() == given_values.max()
    assert thinned.min() == given_values.min()
    assert (places[0], places[-1]) == (0, len(values) - 1)
    assert bool(np.all(np.diff(places) > 0))


def test_a_single_spike_in_a_long_run_is_drawn() -> None:
    values = [0.5] * 100_000
    values[54_321] = 1e6
    frame = charts.points(line(values), "step")
    assert len(frame) <= charts.POINTS_SHOWN
    assert frame["value"].max() == 1e6
    assert frame.loc[frame["value"] == 1e6, "step"].tolist() == [54_322]


def test_what_is_no_number_is_a_gap_and_a_mark() -> None:
    values = [1.0] * 50_000
    values[20_000], values[30_000] = math.nan, math.inf
    frame = charts.points(line(values), "step")
    marked = frame[frame["odd"].notna()]
    assert marked["odd"].tolist() == ["NaN", "∞"]
    assert marked["value"].isna().all()
    assert charts.odd_count(line(values)) == 2
    assert len(frame) <= charts.POINTS_SHOWN


def test_a_run_of_nothing_but_nan_is_still_drawn_and_small() -> None:
    frame = charts.points(line([math.nan] * 50_000), "step")
    assert 0 < len(frame) <= charts.POINTS_SHOWN
    assert frame["odd"].eq("NaN").all()


def test_memory_stays_bounded_and_spikes_survive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "POINTS_MAX", 1024)
    made = Columns()
    for first in range(1, 20_001, 100):
        part = list(range(first, first + 100))
        made.add(1, batch(part, [1e6 if step == 777 else math.sin(step) for step in part]))
    held = made.lines()["loss"]
    assert len(held) <= 1024
    assert held.values.max() == 1e6
    assert held.steps[-1] == 20_000


def long_line(monkeypatch: pytest.MonkeyPatch, *parts: tuple[int, range], spike: int | None = None) -> Line:
    """What is held of more points than are kept, in batches of 100 by (attempt, steps)."""
    monkeypatch.setattr(lines, "POINTS_MAX", 4096)
    made = Columns()
    for attempt, steps in parts:
        for first in steps[::100]:
            some = list(range(first, min(first + 100, steps.stop)))
            made.add(attempt, batch(some, [9.0 if step == spike else 10 * math.exp(-step / 15_000) for step in some]))
    return made.lines()["loss"]


def test_a_line_thinned_again_and_again_holds_all_parts_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    held = long_line(monkeypatch, (1, range(1, 100_001)), spike=20_000)
    assert len(held) <= 4096
    counts, _ = np.histogram(held.steps, bins=10, range=(1, 100_000))
    assert min(counts) > 60, counts
    assert 20_000 in held.steps
    frame = charts.points(held, "step")
    assert len(frame) <= charts.POINTS_SHOWN
    assert 20_000 in set(frame["step"])
    for step in range(5_000, 100_000, 5_000):
        drawn = np.interp(step, frame["step"], frame["value"])
        assert step == 20_000 or drawn == pytest.approx(10 * math.exp(-step / 15_000), abs=0.3), step


@pytest.mark.parametrize("axis", ["step", "time"])
def test_a_curve_is_drawn_as_finely_where_fewer_points_are_held(axis: charts.Axis) -> None:
    steps = np.concatenate([np.arange(0, 100_000, 100), np.arange(100_000, 110_000)])
    held = Line(
        steps=steps, at_ms=steps * 50, attempts=np.ones(len(steps), dtype=np.int64), values=np.sin(steps / 3000)
    )
    frame = charts.points(held, axis)
    assert len(frame) <= charts.POINTS_SHOWN
    assert int((frame["step"] < 100_000).sum()) > 200
    assert int((frame["step"] >= 100_000).sum()) > 200


def test_thinning_brings_no_superseded_value_back(monkeypatch: pytest.MonkeyPatch) -> None:
    held = long_line(monkeypatch, (1, range(1, 4001)), (2, range(3001, 8001)))
    shown = canonical(held)
    redone = shown.steps > 3000
    assert redone.any()
    assert set(shown.attempts[redone]) == {2}
    assert set(shown.attempts[~redone]) == {1}


def test_thinning_leaves_what_no_newer_attempt_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    held = long_line(monkeypatch, (1, range(1, 4001)), (2, range(2001, 3001)), (3, range(4001, 5001)))
    shown = canonical(held)
    assert set(shown.attempts[shown.steps <= 2000]) == {1}
    assert set(shown.attempts[(shown.steps > 2000) & (shown.steps <= 3000)]) == {2}
    assert set(shown.attempts[(shown.steps > 3000) & (shown.steps <= 4000)]) == {1}


def test_names_made_anew_each_step_do_not_fill_the_memory() -> None:
    made = Columns()
    for step in range(1, 1001):
        made.add(1, Batch(steps=(step,), at_ms=(step,), series={f"name-{step}": (1.0,)}))
    assert len(made.by_name) == lines.LINES_MAX
    assert made.left_out == 1000 - lines.LINES_MAX


def test_a_gap_is_no_value_left_out() -> None:
    made = Columns()
    for number in range(lines.LINES_MAX + 1):
        made.add(1, Batch(steps=(1, 2, 3), at_ms=(1, 2, 3), series={f"name-{number}": (None, 1.0, "NaN")}))
    assert made.left_out == 2


def test_a_line_given_out_never_changes() -> None:
    made = columns((1, batch([1, 2], [1.0, 2.0])))
    before = made.lines()["loss"]
    made.add(1, batch(list(range(3, 500)), [0.0] * 497))
    assert list(before.values) == [1.0, 2.0]


def test_by_time_redone_steps_stay() -> None:
    made = columns((1, batch([1, 2, 3], [9, 8, 7])), (2, batch([3], [1])))
    assert len(charts.points(made.lines()["loss"], "time")) == 4
    assert len(charts.points(made.lines()["loss"], "step")) == 3


def test_restarts_are_marked() -> None:
    spec = charts.curve([{"step": 701, "at_ms": 5, "label": "attempt 2"}], "step")
    assert spec["layer"][0]["data"]["values"] == [{"x": 701, "label": "attempt 2"}]
    assert charts.curve([], "step")["layer"][0]["mark"]["type"] == "line"


def test_the_table_of_metrics_runs_no_formula() -> None:
    told = charts.metrics_csv({"=cmd|' /C calc'!A0": line([1.0, math.nan])})
    assert told.splitlines()[0] == "metric,attempt,step,at_ms,value"
    assert told.splitlines()[1].startswith("'=cmd")
    assert told.splitlines()[2].endswith(",nan")
