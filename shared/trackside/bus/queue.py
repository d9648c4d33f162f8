"""RQ as the carrier of attempts: one RQ job per attempt, one queue per slot, and nothing else gets through.

The truth is Trackside's own records; what stands in RQ is what `rq info` shows and what wakes a worker. So no retry,
dependency, callback, webhook, result or script of RQ is ever used, and whoever can write `rq:*` can make a worker do
nothing but look up an attempt that the store has given to its slot.

`rq info --queue-class trackside.bus.queue.AttemptQueue` reads these queues without unpickling anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import redis
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.queue import Queue as RQQueue
from rq.serializers import JSONSerializer

from trackside.bus import keys
from trackside.bus.client import Client, Pipeline, bus_errors, options
from trackside.ids import rq_job_id

__all__ = ["FUNCTION", "AttemptJob", "AttemptQueue", "discard", "push", "queued", "rq_client"]

FUNCTION: Final = "trackside.attempt"  # a label: nothing of this name is imported or called by RQ
KEEP_S: Final = 24 * 3600  # how long `rq info` lists a finished or failed attempt
_MAX_PAYLOAD_BYTES: Final = 1024  # ours has 60; a compressed bomb stays below a megabyte
# What of an RQ job's hash is read back. Callbacks, webhooks, meta, results, dependencies and retries are not.
_FIELDS: Final = frozenset({
    *(b"data", b"status", b"origin", b"description", b"worker_name", b"timeout", b"result_ttl", b"failure_ttl"),
    *(b"created_at", b"enqueued_at", b"started_at", b"ended_at", b"last_heartbeat"),
})  # fmt: skip


class AttemptJob(RQJob):
    """An RQ job that can be nothing but an attempt."""

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:  # noqa: A002 -- RQ's own name
        del serializer  # whatever is asked for: only JSON is read and written
        super().__init__(id, connection=connection, serializer=JSONSerializer)

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Take over the fields that an attempt has; raises DeserializationError for a payload that is not ours."""
        known = {name: value for name, value in raw_data.items() if name in _FIELDS}
        if len(known.get(b"data", b"")) > _MAX_PAYLOAD_BYTES:
            raise DeserializationError(f"RQ job {self.id!r} has a payload that is too large for an attempt")
        try:
            super().restore(known)
        except (ValueError, UnicodeDecodeError, OverflowError) as error:
            raise DeserializationError(f"RQ job {self.id!r} has a field that cannot be read: {error}") from error

    @property
    def func(self) -> Any:
        """Never a function: attempts are run by Trackside's workers, not by `Job.perform`."""
        raise DeserializationError("an attempt is run by a Trackside worker: start one with `trackside trainer`")

    @property
    def success_callback(self) -> None:
        return None

    @property
    def failure_callback(self) -> None:
        return None

    @property
    def stopped_callback(self) -> None:
        return None

    def _deserialize_data(self) -> None:
        super()._deserialize_data()
        payload = (self._func_name, self._instance, self._args, self._kwargs)
        if payload != (FUNCTION, None, [], {}):
            raise DeserializationError(f"RQ job {self.id!r} is no attempt: only {FUNCTION!r} without arguments is")


class AttemptQueue(RQQueue):
    """A slot's queue."""

    job_class = AttemptJob

    def __init__(self, name: str = "default", connection: Any = None, **options: Any) -> None:
        options.update(job_class=AttemptJob, serializer=JSONSerializer)
        super().__init__(name, connection=connection, **options)

    def get_redis_server_version(self) -> tuple[int, int, int]:
        """The oldest server that Trackside runs on; asking would put INFO into the caller's transaction."""
        return (6, 2, 0)


def rq_client(url: str, *, name: str | None = None, command_limit_s: float = 2.0) -> redis.Redis:
    """A client for RQ alone: RQ changes the timeouts of the pool it is handed, and expects redis-py's errors."""
    client: redis.Redis = redis.Redis.from_url(url, **options(name, command_limit_s))
    return client


def slot_queue(client: redis.Redis, slot_id: str) -> AttemptQueue:
    """The RQ queue of a slot."""
    return AttemptQueue(keys.slot_queue(slot_id), connection=client)


def push(pipe: Pipeline, client_for_rq: redis.Redis, job_id: str, number: int, slot_id: str) -> None:
    """Put an attempt on its slot's queue, inside the transaction that `pipe` has open; sends nothing by itself."""
    queue = slot_queue(client_for_rq, slot_id)
    job = AttemptJob.create(
        FUNCTION,
        args=[],
        connection=client_for_rq,
        id=rq_job_id(job_id, number),
        origin=queue.name,
        description=f"{job_id} attempt {number}",
        timeout=-1,  # time limits are the worker's, over all attempts of a job
        result_ttl=KEEP_S,
        failure_ttl=KEEP_S,
    )
    pipe.delete(job.key)  # fields that a stranger left under this id would be RQ's to read
    pipe.sadd(queue.redis_queues_keys, queue.key)
    queue._enqueue_job(job, pipeline=cast(Any, pipe))


def queued(client: Client | redis.Redis, slot_id: str) -> list[str]:
    """RQ job ids that wait on a slot's queue or are on their way to its worker, next first."""
    queue = slot_queue(client, slot_id)
    with client.pipeline(transaction=False) as pipe:
        pipe.lrange(queue.intermediate_queue_key, 0, -1)
        pipe.lrange(queue.key, 0, -1)
        moving, waiting = pipe.execute()
    return [raw.decode("utf-8", "replace") for raw in (*moving, *waiting)]


def discard(client_for_rq: redis.Redis, job_id: str, number: int, slot_id: str) -> None:
    """Remove what RQ still holds of an attempt that nobody runs any more, and list it as failed unless it is over.

    A second call does nothing. Only for attempts whose worker is dead or never took them.
    """
    with bus_errors():
        drop(client_for_rq, rq_job_id(job_id, number), slot_id, "the worker is gone; the job's record tells more")


def drop(client_for_rq: redis.Redis, rq_id: str, slot_id: str, why: str) -> None:
    """`discard` for any RQ job id, also one that is not ours; raises redis-py's errors."""
    queue = slot_queue(client_for_rq, slot_id)
    started = queue.started_job_registry
    members = cast(list[bytes], client_for_rq.zrange(started.key, 0, -1))
    prefix = f"{rq_id}:".encode()
    job = _to_be_failed(client_for_rq, rq_id)
    with client_for_rq.pipeline() as pipe:
        pipe.lrem(queue.key, 0, rq_id)
        pipe.lrem(queue.intermediate_queue_key, 0, rq_id)
        for member in members:
            if member.startswith(prefix):
                _drop_execution(client_for_rq, pipe, member.decode(), started.key)
        if job is not None:
            job.origin = queue.name  # what the hash says may be a stranger's
            job.failure_ttl = KEEP_S
            job._status = JobStatus.FAILED
            pipe.delete(job.key)  # written anew below, without what is not an attempt's
            job._handle_failure(why, pipeline=pipe)
        pipe.execute()


def _to_be_failed(client: redis.Redis, rq_id: str) -> AttemptJob | None:
    """The RQ job if it is to be listed as failed; None if it is over, gone, or has an id that RQ refuses."""
    try:
        job = cast(AttemptJob, AttemptJob.fetch(rq_id, connection=client))
    except (NoSuchJobError, ValueError):
        return None
    except (DeserializationError, redis.ResponseError):  # a stranger's: a plain record takes its place
        return cast(
            AttemptJob, AttemptJob.create(FUNCTION, args=[], connection=client, id=rq_id, description="refused")
        )
    return None if job.get_status(refresh=False) in (JobStatus.FINISHED, JobStatus.FAILED) else job


def _drop_execution(client: redis.Redis, pipe: Any, member: str, started_key: str) -> None:
    execution = Execution.from_composite_key(member, client)
    worker = cast(bytes | None, client.hget(execution.key, "worker_name"))
    pipe.delete(execution.key)
    pipe.zrem(started_key, member)
    pipe.delete(ExecutionRegistry(execution.job_id, client).key)
    if worker:
        execution.worker_name = worker.decode("utf-8", "replace")
        pipe.srem(execution.worker_executions_key, member)


def is_ours(job: RQJob) -> bool:
    """Whether the payload is the one entry of ours; reads it as JSON and imports nothing."""
    try:
        return bool(job.func_name == FUNCTION)
    except (DeserializationError, ValueError):
        return False
