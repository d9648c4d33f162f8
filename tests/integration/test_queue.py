"""RQ carries attempts and nothing else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import redis
from rq.exceptions import DeserializationError
from rq.job import JobStatus
from rq.worker import Worker

from trackside.bus import keys, queue
from trackside.bus.client import Client, connect
from trackside.models import Job, JobSpec, Program, Slot
from trackside.store import Store

SLOT = Slot(id="host-cpu0", host="host", kind="cpu", storage="s1")


@pytest.fixture
def client(bus_urls: Mapping[str, str]) -> Iterator[Client]:
    with connect(bus_urls["supervisor"]) as client:
        yield client


@pytest.fixture
def for_rq(bus_urls: Mapping[str, str]) -> Iterator[redis.Redis]:
    with queue.rq_client(bus_urls["supervisor"]) as client:
        yield client


def assigned(client: Client, for_rq: redis.Redis, job_id: str = "digits-abc123") -> Job:
    store = Store(client, by="supervisor:test")
    store.submit(job_id, "digits", JobSpec(program=Program(kind="script", target="train.py")))
    return store.assign(job_id, SLOT, lambda pipe, job: queue.push(pipe, for_rq, job.id, job.attempt, SLOT.id))


def test_an_assigned_attempt_waits_on_its_slots_queue(client: Client, for_rq: redis.Redis) -> None:
    assigned(client, for_rq)

    assert queue.queued(client, SLOT.id) == ["digits-abc123_1"]
    job = queue.AttemptJob.fetch("digits-abc123_1", connection=for_rq)
    assert (job.func_name, job.args, job.kwargs, job.timeout) == (queue.FUNCTION, [], {}, -1)
    assert job.description == "digits-abc123 attempt 1"
    assert job.get_status() is JobStatus.QUEUED
    assert [q.name for q in queue.AttemptQueue.all(connection=for_rq)] == ["slot-host-cpu0"]


def test_a_transaction_that_loses_leaves_nothing_in_rq(client: Client, for_rq: redis.Redis) -> None:
    with client.pipeline() as pipe:
        pipe.watch(keys.LEADER)
        client.hset(keys.LEADER, "other", "writer")
        pipe.multi()
        queue.push(pipe, for_rq, "digits-abc123", 1, SLOT.id)
        with pytest.raises(redis.WatchError):
            pipe.execute()

    assert queue.queued(client, SLOT.id) == []
    assert not queue.AttemptJob.exists("digits-abc123_1", connection=for_rq)


def test_discarding_removes_every_trace_of_a_running_attempt_and_lists_it_as_failed(
    client: Client, for_rq: redis.Redis
) -> None:
    assigned(client, for_rq)
    slot_queue = queue.slot_queue(for_rq, SLOT.id)
    worker = Worker([slot_queue], connection=for_rq, name="w1", job_class=queue.AttemptJob)
    job = queue.AttemptJob.fetch("digits-abc123_1", connection=for_rq)
    for_rq.lmove(slot_queue.key, slot_queue.intermediate_queue_key)
    execution = worker.prepare_execution(job)
    worker.prepare_job_execution(job)

    queue.discard(for_rq, "digits-abc123", 1, SLOT.id)
    queue.discard(for_rq, "digits-abc123", 1, SLOT.id)

    assert queue.queued(client, SLOT.id) == []
    assert for_rq.zcard(slot_queue.started_job_registry.key) == 0
    assert for_rq.exists(execution.key, "rq:executions:digits-abc123_1", worker.executions_key) == 0
    assert job.get_status() is JobStatus.FAILED
    assert for_rq.zcard(slot_queue.failed_job_registry.key) == 1
    assert for_rq.xlen("rq:results:digits-abc123_1") == 1


HOSTILE: dict[str, Any] = {
    "function": json.dumps(["os.system", None, ["touch {mark}"], {}]).encode(),
    "instance": json.dumps([queue.FUNCTION, "text", [], {}]).encode(),
    "arguments": json.dumps([queue.FUNCTION, None, ["../../etc"], {}]).encode(),
    "pickle": pickle.dumps((queue.FUNCTION, None, (), {})),
    "number": b"7",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_strange_payload_is_never_read_as_an_attempt(for_rq: redis.Redis, kind: str) -> None:
    for_rq.hset("rq:job:evil-aaaaaa_1", mapping={"data": HOSTILE[kind], "status": "queued", "origin": "x"})
    job = queue.AttemptJob.fetch("evil-aaaaaa_1", connection=for_rq)

    assert not queue.is_ours(job)
    with pytest.raises(DeserializationError):
        job.perform()


def test_callbacks_webhooks_and_meta_of_a_stranger_are_not_read(for_rq: redis.Redis) -> None:
    good = json.dumps([queue.FUNCTION, None, [], {}]).encode()
    hook = json.dumps([{"url": "http://127.0.0.1:1/", "job_status": "failed"}])
    evil: dict[str, Any] = {
        "failure_callback_name": "os.abort",
        "stopped_callback_name": "os.abort",
        "success_callback_name": "os.abort",
    }
    more: dict[str, Any] = {
        "webhooks": hook,
        "meta": pickle.dumps({}),
        "dependency_ids": '["a"]',
        "rate_limit_key": "k",
    }
    fields: dict[Any, Any] = {"data": good, "status": "queued", **evil, **more}
    for_rq.hset("rq:job:evil-aaaaaa_1", mapping=fields)

    job = queue.AttemptJob.fetch("evil-aaaaaa_1", connection=for_rq, serializer="pickle")

    assert (job.webhooks, job.meta, job.dependency_ids, job.has_rate_limit) == ([], {}, [], False)
    assert (job.failure_callback, job.stopped_callback, job.success_callback) == (None, None, None)
    queue.drop(for_rq, "evil-aaaaaa_1", SLOT.id, "refused")
    left = for_rq.hgetall("rq:job:evil-aaaaaa_1")
    assert b"webhooks" not in left
    assert not left[b"failure_callback_name"]


def test_a_payload_that_is_too_large_is_refused_before_it_is_unpacked(for_rq: redis.Redis) -> None:
    for_rq.hset("rq:job:evil-aaaaaa_1", mapping={"data": b"x" * 5000, "status": "queued"})
    with pytest.raises(DeserializationError, match="too large"):
        queue.AttemptJob.fetch("evil-aaaaaa_1", connection=for_rq)

    for_rq.rpush("rq:queue:slot-host-cpu0", "evil-aaaaaa_1")
    queue.drop(for_rq, "evil-aaaaaa_1", SLOT.id, "refused")

    job = queue.AttemptJob.fetch("evil-aaaaaa_1", connection=for_rq)
    assert job.get_status() is JobStatus.FAILED
    assert queue.queued(for_rq, SLOT.id) == []


def test_an_id_that_rq_itself_refuses_only_leaves_the_queue(for_rq: redis.Redis) -> None:
    for_rq.rpush("rq:queue:slot-host-cpu0", "../../etc/passwd")
    queue.drop(for_rq, "../../etc/passwd", SLOT.id, "refused")
    assert queue.queued(for_rq, SLOT.id) == []
