"""Every error of Trackside, under one root.

TracksideError
├── ConfigurationError      a setting is wrong: fix the setting named in the message
├── InvalidJob              what was submitted cannot run: fix the submission
├── NotFound                no job, attempt or slot of that name
├── IllegalTransition       the job's state does not allow this
├── Conflict                somebody else changed the record first: read again, then decide
│   └── Fenced              a newer attempt owns the job: stop at once
├── ServerBehind            the server has lost records that were there: keep what is not told yet, and ask again
├── BusError                the bus did not do what was asked
│   ├── BusUnavailable      no server answered: start one, or wait
│   ├── BusDenied           the server refused this user this command
│   └── DecodeError         bytes on the bus are no record of ours; keeps the bytes
├── ServerError             the embedded server could not be found, started or stopped
│   └── AlreadyRunning      this home is in use; keeps the pid
├── CheckpointError         no checkpoint could be written or loaded
│   └── CheckpointDamaged   files do not match their manifest
└── NotInJob                called outside of a job, or before `trackside.init()`

StopRequested (BaseException) is no error: the attempt was asked to stop, and did so at a step boundary.
Diverged is the stop that a run asks of itself.
"""

from __future__ import annotations

from typing import Any


class TracksideError(Exception):
    """Root of every error that Trackside raises on purpose.

    Errors cross process borders, so each is rebuilt from its message and its attributes when unpickled.
    """

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.facts)


def _rebuild(kind: type[TracksideError], message: str, facts: dict[str, Any]) -> TracksideError:
    return kind(message, **facts)


class ConfigurationError(TracksideError):
    """A setting has a value that cannot be used."""


class InvalidJob(TracksideError):
    """A submission that cannot run; nothing was enqueued."""


class NotFound(TracksideError):
    """There is no such job, attempt or slot."""


class IllegalTransition(TracksideError):
    """The job's present state does not allow what was asked."""


class Conflict(TracksideError):
    """Another writer changed the record between reading and writing it."""


class Fenced(Conflict):
    """A newer attempt owns the job, so nothing that this one writes is accepted."""


class ServerBehind(TracksideError):
    """The server knows less than it did: it came back empty or older, and its records are still to be restored."""


class BusError(TracksideError):
    """The bus did not do what was asked."""


class BusUnavailable(BusError):
    """No server answered in time."""


class BusDenied(BusError):
    """The server refused the command to this user, or the password was wrong."""


class DecodeError(BusError):
    """Bytes that are no record of ours; `raw` keeps them."""

    def __init__(self, message: str, raw: bytes = b"", **facts: Any) -> None:
        super().__init__(message, raw=raw, **facts)
        self.raw = raw


class ServerError(TracksideError):
    """The embedded server could not be found, started or stopped."""


class AlreadyRunning(ServerError):
    """This home is in use by the process `pid`."""

    def __init__(self, message: str, pid: int = 0, **facts: Any) -> None:
        super().__init__(message, pid=pid, **facts)
        self.pid = pid


class CheckpointError(TracksideError):
    """No checkpoint could be written or loaded."""


class CheckpointDamaged(CheckpointError):
    """A checkpoint's files do not match its manifest."""


class NotInJob(TracksideError):
    """There is no current run."""


class StopRequested(BaseException):
    """The attempt was asked to stop (`reason`: cancelled, paused, preempted, fenced, ...) and stops at a boundary."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Diverged(StopRequested):
    """A watched metric was NaN or infinite at several logged steps in a row."""

    def __init__(self, metric: str, value: str, steps: tuple[int, ...]) -> None:
        super().__init__("diverged")
        self.metric, self.value, self.steps = metric, value, steps

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.metric, self.value, self.steps)

    def __str__(self) -> str:
        return (
            f"{self.metric} was {self.value} at {len(self.steps)} logged steps in a row, first at step "
            f"{self.steps[0]}: lower the learning rate or clip gradients; trackside.init(watch=()) does not look"
        )
