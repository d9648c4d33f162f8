"""Identifiers: made here, checked here."""

from __future__ import annotations

import re
import secrets
from typing import Final

from trackside.errors import InvalidJob

JOB_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: ids are read aloud and typed


def new_job_id(name: str | None = None) -> str:
    """A new job id: the name made plain, and six random characters (30 bits), 64 characters at most."""
    suffix = "".join(secrets.choice(_ALPHABET) for _ in range(6))
    return f"{stem(name or '')}-{suffix}"


def stem(name: str) -> str:
    """What the id of a job of this name begins with: the name made plain, 48 characters at most."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-") or "job"


def check_job_id(value: str) -> str:
    """Return `value` if it is a job id, else raise InvalidJob."""
    if not JOB_ID.fullmatch(value):
        raise InvalidJob(
            f"{value[:80]!r} is no job id: use 1 to 64 of a-z, 0-9 and '-', not at either end", value=value
        )
    return value


def rq_job_id(job_id: str, attempt: int) -> str:
    """The id of the RQ job that carries an attempt; RQ allows letters, digits, '_' and '-' only."""
    return f"{job_id}_{attempt}"


def parse_rq_job_id(value: str) -> tuple[str, int]:
    """The job id and attempt number in an RQ job id of ours; raises InvalidJob for any other."""
    job_id, _, number = value.rpartition("_")
    if not number.isdecimal() or not 1 <= int(number) < 2**31:
        raise InvalidJob(f"{value[:80]!r} is no attempt of ours: expected JOB_ATTEMPT", value=value)
    return check_job_id(job_id), int(number)
