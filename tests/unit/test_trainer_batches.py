"""Journal records as columns, whatever a script may have written there."""

from __future__ import annotations

from typing import Any

import orjson

from trackside.codec import decode, encode
from trackside.models import Batch
from trackside_trainer.batches import MAX_RECORDS, BatchBuilder, bounded


def point(step: Any, **values: Any) -> dict[str, Any]:
    return {"k": "m", "s": step, "t": 1000, "m": values}


def built(*records: dict[str, Any]) -> Batch:
    builder = BatchBuilder()
    for record in records:
        builder.add(record)
    return builder.build()


def test_points_become_columns_with_gaps() -> None:
    batch = built(point(1, loss=0.5), point(2, loss=0.25, acc=1), point(3, acc="NaN"))
    assert batch.steps == (1, 2, 3)
    assert batch.series == {"loss": (0.5, 0.25, None), "acc": (None, 1.0, "NaN")}


def test_a_step_that_is_logged_in_several_calls_is_one_point() -> None:
    batch = built(point(1, loss=0.5), point(1, acc=1), point(1, loss=0.4), point(2, acc=2), point(2, loss=0.3))
    assert batch.steps == (1, 1, 2)
    assert batch.series == {"loss": (0.5, 0.4, 0.3), "acc": (1.0, None, 2.0)}


def test_total_and_summary_are_taken_over() -> None:
    batch = built({"k": "begin", "total": 10}, {"k": "summary", "m": {"acc": 0.9}}, {"k": "note", "text": "x"})
    assert (batch.total, batch.summary, batch.steps) == (10, {"acc": 0.9}, ())


def test_what_no_reader_could_hold_is_left_out_and_the_rest_is_carried() -> None:
    batch = built(
        point(10**30, loss=1.0), point("1", loss=1.0), point(True, loss=1.0), {"k": "m"},
        point(1, huge=10**400, text="hello", nested={"a": 1}, flag=True, **{"x" * 1000: 1.0}),
        {"k": "summary", "m": {"big": "x" * 100_000, "whole": 10**30, "fine": [1]}},
    )  # fmt: skip
    assert batch.steps == (1,)
    assert {name: column for name, column in batch.series.items() if len(name) < 200} == {
        "huge": ("Infinity",), "flag": (1.0,),
    }  # fmt: skip
    assert len(batch.series) == 3
    assert batch.summary["fine"] == [1]
    assert decode(Batch, encode(batch)) == batch


def test_names_that_begin_alike_stay_apart_however_long_they_are() -> None:
    alike = "model." + "layers.block." * 20
    names = ["x" * 200, *(alike + end for end in ("q", "k", "v"))]
    values = {name: float(at) for at, name in enumerate(names)}
    batch = built(point(1, **values), point(2, **values), {"k": "summary", "m": values})
    assert sorted(batch.series.values()) == [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert sorted(batch.summary.values()) == [0.0, 1.0, 2.0, 3.0]
    assert all(len(name) == 200 for name in batch.series)
    assert list(batch.series)[:1] == ["x" * 200]
    assert list(batch.series)[1].startswith(alike[:187])


def test_a_batch_is_full_before_its_columns_explode() -> None:
    builder = BatchBuilder()
    added = 0
    while not builder.full:
        builder.add(point(added, **{f"name{added}-{at}": 1.0 for at in range(10)}))
        added += 1
    assert added < 200
    plain = BatchBuilder()
    for step in range(MAX_RECORDS):
        assert not plain.full
        plain.add(point(step, loss=1.0))
    assert plain.full


def test_bounded_results_can_be_encoded() -> None:
    assert orjson.dumps(bounded({str(at): {"deep": [at]} for at in range(5000)}))
