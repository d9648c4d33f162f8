"""What is said of a job whose submission, or the wait for its end, is cut short: by Ctrl-C, or by a lost connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trackside.cli.render import say
from trackside.errors import BusUnavailable

if TYPE_CHECKING:
    from trackside.store import Store


class Sending:
    """A submission on its way; whoever sends it says once it is known to be on the bus."""

    def __init__(self) -> None:
        self.arrived = False


@contextmanager
def sending(store: Store, job_id: str) -> Iterator[Sending]:
    """Send the job within; what cuts that short is answered with what may have become of it, and passes on."""
    on_its_way = Sending()
    try:
        yield on_its_way
    except KeyboardInterrupt:
        _tell(job_id, arrived=on_its_way.arrived)
        raise
    except BusUnavailable as error:
        # Before there was a connection nothing was sent, and a full server has answered that it did not take it.
        if on_its_way.arrived or (store.client.connections.made > 0 and "full" not in error.facts):
            _tell(job_id, arrived=on_its_way.arrived)
        raise


def _tell(job_id: str, *, arrived: bool) -> None:
    if arrived:
        say(f"{job_id} is not stopped by this: `trackside wait {job_id}` waits on, `trackside cancel {job_id}` ends it")
    else:
        say(f"{job_id} may be on the bus: `trackside show {job_id}` tells, `trackside cancel {job_id}` ends it")
