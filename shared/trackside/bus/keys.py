"""Every key and channel of Trackside, spelled here and nowhere else.

key                        type     written by                    expires
ts:jobs                    zset     submitter                     never: job id -> created_at_ms
ts:jobs:live               set      submitter, supervisor         never: ids of jobs not yet in a terminal state
ts:job:<job>               hash     store (all state)             never: the job's record
ts:attempt:<job>:<n>       hash     store                         never: an attempt's record
ts:history:<job>           stream   store                         never: the job's events
ts:events                  stream   store                         trimmed to about 100,000: every event
ts:status                  channel  store                         the same events, as wake-up
ts:metrics:<job>           stream   worker, ids <attempt>-<byte>  trimmed to about 200,000 batches
ts:aside:<job>             stream   worker                        put in its metrics stream's place: see earlier.py
ts:output:<job>            stream   worker, ids <attempt>-<byte>  trimmed to about 50,000 pieces
ts:snapshot:<sha256>       string   submitter                     never: a submitted folder, tar.gz
ts:slots                   set      agent                         never: slot ids
ts:slot:<slot>             hash     agent                         never: the slot's record
ts:breaker:<slot>          hash     leading supervisor            never: the slot's circuit breaker
ts:samples:<host>          stream   agent                         trimmed to about 2,000: GPU and process samples
ts:beat:<role>:<name>      string   that process                  after its TTL
ts:deadlines               zset     every process that beats      by its owner at its end: member <role>:<name> -> ms
ts:leader                  string   leading supervisor            after the lease
ts:probe                   stream   nobody                        never there: asks whether a write is taken
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "ts:"
JOBS: Final = "ts:jobs"
LIVE_JOBS: Final = "ts:jobs:live"
EVENTS: Final = "ts:events"
STATUS_CHANNEL: Final = "ts:status"
SLOTS: Final = "ts:slots"
DEADLINES: Final = "ts:deadlines"
LEADER: Final = "ts:leader"
PROBE: Final = "ts:probe"

EVENTS_MAXLEN: Final = 100_000
METRICS_MAXLEN: Final = 200_000
OUTPUT_MAXLEN: Final = 50_000
SAMPLES_MAXLEN: Final = 2_000


def job(job_id: str) -> str:
    return f"ts:job:{job_id}"


def attempt(job_id: str, number: int) -> str:
    return f"ts:attempt:{job_id}:{number}"


def history(job_id: str) -> str:
    return f"ts:history:{job_id}"


def metrics(job_id: str) -> str:
    return f"ts:metrics:{job_id}"


def metrics_aside(job_id: str) -> str:
    return f"ts:aside:{job_id}"


def output(job_id: str) -> str:
    return f"ts:output:{job_id}"


def snapshot(sha256: str) -> str:
    return f"ts:snapshot:{sha256}"


def slot(slot_id: str) -> str:
    return f"ts:slot:{slot_id}"


def breaker(slot_id: str) -> str:
    return f"ts:breaker:{slot_id}"


def samples(host: str) -> str:
    return f"ts:samples:{host}"


def beat(role: str, name: str) -> str:
    return f"ts:beat:{role}:{name}"


def deadline_member(role: str, name: str) -> str:
    return f"{role}:{name}"


def slot_queue(slot_id: str) -> str:
    """The RQ queue's name of a slot: one queue a worker, so that RQ moves ids through its intermediate list."""
    return f"slot-{slot_id}"


def entry_id(attempt_number: int, sequence: int) -> str:
    """A stream id that fences: Redis refuses any that is not larger than the stream's last."""
    return f"{attempt_number}-{sequence}"


def parse_entry_id(entry: bytes | str) -> tuple[int, int]:
    """The attempt number and sequence in a fenced stream's id."""
    text = entry.decode() if isinstance(entry, bytes) else entry
    number, _, sequence = text.partition("-")
    return int(number), int(sequence)
