"""A wall clock that can be set for one kind of process, while everything runs, as an operator or NTP would set it.

`sitecustomize.py` in a folder on PYTHONPATH: Python runs it at the start of every process of the system. A file named
after the service holds by how many seconds its clock is off; each new value is confirmed in `<service>.seen`, so that
a test knows that the clock was asked. The monotonic clocks stay as they are, as a real clock's setting leaves them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trackside.testing import wait_until

_SHIM: Final = """
import datetime, os, sys, time

FOLDER = os.path.dirname(os.path.abspath(__file__))
SERVICE = next((word for word in ("supervisor", "trainer") if word in sys.orig_argv), None)
time_s, time_ns = time.time, time.time_ns
seen = [0.0]


def off_s():
    try:
        with open(os.path.join(FOLDER, SERVICE)) as file:
            found = float(file.read() or 0)
    except (OSError, ValueError):
        return seen[0]
    if found != seen[0]:
        seen[0] = found
        with open(os.path.join(FOLDER, SERVICE + ".seen"), "w") as file:
            file.write(str(found))
    return found


class Now(type(datetime.datetime)):
    def __instancecheck__(cls, other):
        return isinstance(other, datetime.datetime.__mro__[1] if cls is datetime.datetime else cls.__mro__[1])


class Datetime(datetime.datetime, metaclass=Now):
    @classmethod
    def now(cls, tz=None):
        return cls.__mro__[1].fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.__mro__[1].fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)


if SERVICE is not None:
    time.time = lambda: time_s() + off_s()
    time.time_ns = lambda: time_ns() + int(off_s() * 1e9)
    datetime.datetime = Datetime
"""


class Clocks:
    """The wall clocks of the services of one system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SHIM)

    def put(self, service: str, off_s: float) -> None:
        """Set a service's wall clock off by so many seconds."""
        aside = self.folder / f"{service}.new"
        aside.write_text(str(off_s))
        aside.replace(self.folder / service)

    def await_asked(self, service: str, off_s: float) -> None:
        """Return once the service has asked for the time and got this one."""
        wait_until(lambda: self._seen(service) == off_s, 20.0, f"nothing of the {service} asked for the time")

    def _seen(self, service: str) -> float | None:
        try:
            return float((self.folder / f"{service}.seen").read_text() or 0)
        except (OSError, ValueError):
            return None
