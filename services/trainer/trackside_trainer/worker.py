"""The RQ worker of one slot, and nothing but it: what of RQ is kept is what `rq info` shows.

RQ's own loop is not used (`work.py` has ours): it ends with the connection, cleans up behind other workers' backs,
beats from a thread that outlives what it beats for, and reads jobs that anybody may have written. What `rq info` shows
is the truth: living workers, what they carry, what is over.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any, Final, cast

import redis
from rq import worker_registration
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.utils import now as rq_now
from rq.worker import Worker
from rq.worker.base import WorkerStatus

from trackside.bus import queue
from trackside.bus.client import bus_errors
from trackside.errors import InvalidJob

_RQ_TTL_S: Final = 6  # how long `rq info` goes on listing a worker that was killed
_EXECUTION_TTL_S: Final = 365 * 24 * 3600  # RQ must never find an attempt expired: then it would requeue or fail it
# What RQ raises for a job that is gone or no attempt.
STRANGE: Final = (NoSuchJobError, DeserializationError)


class SlotWorker(Worker):
    """RQ's worker without its loop, threads, maintenance and signal handlers."""

    queue_class = queue.AttemptQueue  # type: ignore[assignment]  # RQ infers its own class
    job_class = queue.AttemptJob

    def __init__(self, slot_id: str, connection: redis.Redis) -> None:
        # RQ refuses a name while the key of the dead worker that had it lives.
        super().__init__(
            [queue.slot_queue(connection, slot_id)], name=f"{slot_id}-{secrets.token_hex(3)}", connection=connection,
            serializer="json", log_job_description=False, worker_ttl=_RQ_TTL_S,
        )  # fmt: skip
        self.birth_date = rq_now()
        self._state = WorkerStatus.IDLE.value

    @property
    def own_queue(self) -> queue.AttemptQueue:
        return cast(queue.AttemptQueue, self.queues[0])

    def fetch(self, rq_id: str) -> queue.AttemptJob:
        """An RQ job of this slot's queue; raises InvalidJob or one of STRANGE for what is no attempt."""
        with bus_errors():
            job = cast(queue.AttemptJob, queue.AttemptJob.fetch(rq_id, connection=self.connection))
        if not queue.is_ours(job):
            raise InvalidJob("its payload is no attempt")
        job.origin = self.own_queue.name  # what the hash says may be a stranger's
        return job

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Write the whole record each time: whatever was expired or swept away is there again."""
        del timeout
        self.last_heartbeat = rq_now()
        pipe = self.connection.pipeline() if pipeline is None else pipeline
        pipe.hset(self.key, mapping={**self.serialize(), "state": self._state})
        pipe.expire(self.key, _RQ_TTL_S)
        worker_registration.register(self, pipe)
        pipe.sadd(self.queue_class.redis_queues_keys, self.own_queue.key)  # `rq info` lists workers by known queues
        if pipeline is None:
            pipe.execute()

    def forget_others(self) -> None:
        """Take dead workers of this slot off RQ's lists at once; whoever holds the slot's lock is its only worker."""
        mine = self.key.encode()
        listed = cast(set[bytes], self.connection.smembers(_workers_of(self)))
        dead = [key for key in listed if key != mine]
        if dead:
            with self.connection.pipeline() as pipe:
                pipe.srem(self.redis_workers_keys, *dead)
                pipe.srem(_workers_of(self), *dead)
                pipe.delete(*dead, *(key + b":executions" for key in dead))
                pipe.execute()

    def leave(self) -> None:
        """Take this worker off RQ's lists."""
        self.register_death()

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:
        return _EXECUTION_TTL_S

    @property
    def should_run_maintenance_tasks(self) -> bool:
        return False

    def run_maintenance_tasks(self) -> None:
        """Nothing: what is left of a dead worker is its agent's and the supervisor's to clear."""

    def procline(self, message: str) -> None:
        """Nothing: the process keeps its name."""

    def _set_ip_address(self, connection: redis.Redis) -> None:
        self.ip_address = "unknown"  # asking would need the server at the very start

    def _set_connection(self, connection: redis.Redis) -> redis.Redis:
        return connection  # RQ would raise the client's time limits to minutes


def _workers_of(worker: SlotWorker) -> str:
    return str(worker_registration.WORKERS_BY_QUEUE_KEY % worker.own_queue.name)


class Carried:
    """An attempt as RQ knows it: started when we take it, finished or failed when it is over."""

    def __init__(self, worker: SlotWorker, job: RQJob, slot_id: str) -> None:
        self._worker, self._job, self._slot = worker, job, slot_id
        self._execution: Execution | None = None

    def open(self) -> None:
        """Tell RQ that the attempt runs; a second call does nothing."""
        if self._execution is None:
            with bus_errors():
                execution = self._worker.prepare_execution(self._job)
                self._worker.prepare_job_execution(self._job, remove_from_intermediate_queue=True)
            self._execution = execution

    def close(self, *, succeeded: bool, why: str) -> None:
        """Tell RQ that it is over."""
        with suppress(*STRANGE):
            self.open()
            self._close(succeeded=succeeded, why=why)

    def _close(self, *, succeeded: bool, why: str) -> None:
        worker, job = self._worker, self._job
        assert self._execution is not None  # noqa: S101 -- `open` has just seen to it
        with bus_errors():
            job.ended_at = rq_now()
            if succeeded:
                worker.handle_job_success(job, worker.own_queue, job.started_job_registry, self._execution)
            else:
                worker.handle_job_failure(job, worker.own_queue, exc_string=why, execution=self._execution)
            # What a lost reply left behind: a second execution, or a failure that RQ only logged as not written.
            queue.drop(worker.connection, job.id, self._slot, why)
            worker.set_state(WorkerStatus.IDLE.value)
