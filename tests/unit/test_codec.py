"""What was written can be read, also by an older and a newer program; what cannot be read is refused with its bytes."""

from __future__ import annotations

import pickle

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackside.codec import decode, decode_fields, encode, encode_fields, number_or_name
from trackside.errors import DecodeError
from trackside.models import (
    Attempt,
    AttemptState,
    Batch,
    Beat,
    CheckpointRef,
    Event,
    EventKind,
    Failure,
    Job,
    JobSpec,
    JobState,
    Outcome,
    Program,
    Reason,
    Role,
)

TEXT = st.text(max_size=40)
JOBS = st.builds(
    Job,
    id=TEXT,
    name=TEXT,
    state=st.sampled_from(JobState),
    spec=st.builds(
        JobSpec,
        program=st.builds(
            Program,
            kind=st.sampled_from(["script", "module", "function"]),
            target=TEXT,
            argv=st.lists(TEXT, max_size=3).map(tuple),
        ),
        params=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT, max_size=3),
        timeout_s=st.none() | st.floats(0, 1e9),
    ),
    created_at_ms=st.integers(0, 2**53),
    changed_at_ms=st.integers(0, 2**53),
    slot=st.none() | TEXT,
    reason=st.none() | st.sampled_from(Reason),
    detail=st.none() | TEXT,
    checkpoints=st.lists(
        st.builds(
            CheckpointRef, name=TEXT, step=st.integers(0, 2**40), attempt=st.integers(1, 99), digest=TEXT, storage=TEXT
        ),
        max_size=2,
    ).map(tuple),
)  # fmt: skip


@given(JOBS)
def test_a_job_survives_the_hash_and_the_document(job: Job) -> None:
    as_hash = {name.encode(): value for name, value in encode_fields(job).items()}
    assert decode_fields(Job, as_hash) == job
    assert decode(Job, encode(job)) == job


def test_text_fields_of_a_hash_are_plain_text() -> None:
    slot = Attempt(job="a", number=1, state=AttemptState.RUNNING, slot="h-cpu0", host="h", assigned_at_ms=7)
    fields = encode_fields(slot)
    assert (fields["state"], fields["number"], fields["v"]) == (b"running", b"1", b"1")


def test_an_unknown_field_is_ignored_and_a_missing_one_takes_its_default() -> None:
    raw = orjson.dumps({"v": 1, "kind": "note", "at_ms": 5, "colour": "red"})
    assert decode(Event, raw) == Event(kind=EventKind.NOTE, at_ms=5)


@pytest.mark.parametrize(
    ("kind", "raw", "says"),
    [
        (Event, b"{", "no JSON"),
        (Event, b"[1]", "must be a JSON object"),
        (Event, b'{"kind":"note"}', "without at_ms"),
        (Event, b'{"kind":"party","at_ms":1}', "kind"),
        (Event, b'{"kind":"note","at_ms":"noon"}', "at_ms: int expected"),
        (Event, b'{"kind":"note","at_ms":true}', "at_ms: int expected"),
        (Event, b'{"v":99,"kind":"note","at_ms":1}', "upgrade"),
        (Batch, b'{"steps":[1,"two"]}', "steps"),
        (Beat, b'{"role":"cook","name":"n","host":"h","pid":1,"started_at_ms":1,"at_ms":1}', "role"),
    ],
)
def test_what_is_no_record_is_refused_with_its_bytes(kind: type[object], raw: bytes, says: str) -> None:
    with pytest.raises(DecodeError, match=says) as caught:
        decode(kind, raw)
    assert caught.value.raw == raw
    assert pickle.loads(pickle.dumps(caught.value)).raw == raw  # noqa: S301 -- our own bytes


def test_numbers_that_json_lacks_keep_their_names() -> None:
    named = [number_or_name(value) for value in (1.5, float("nan"), float("inf"), float("-inf"))]
    assert named == [1.5, "NaN", "Infinity", "-Infinity"]
    batch = Batch(steps=(1,), at_ms=(2,), series={"loss": tuple(named[1:2])})
    assert decode(Batch, encode(batch)) == batch


def test_a_nested_outcome_keeps_its_failure() -> None:
    outcome = Outcome(reason=Reason.USER_ERROR, exit_code=1, failure=Failure(type="ValueError", message="no"))
    attempt = Attempt(
        job="a", number=2, state=AttemptState.ENDED, slot="s", host="h", assigned_at_ms=1, outcome=outcome
    )
    as_hash = {name.encode(): value for name, value in encode_fields(attempt).items()}
    assert decode_fields(Attempt, as_hash) == attempt


def test_roles_are_text() -> None:
    beat = Beat(role=Role.WORKER, name="n", host="h", pid=1, started_at_ms=1, at_ms=1)
    assert orjson.loads(encode(beat))["role"] == "worker"
