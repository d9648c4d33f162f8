"""Settings: read once from the environment into a frozen object, checked, and passed down.

Each setting is an environment variable `TRACKSIDE_` + the field's name in capitals. A wrong value stops the start
and names the variable. `TRACKSIDE_PROFILE=test` divides the times by ten; a time set by itself wins over the profile.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, get_type_hints

from trackside.errors import ConfigurationError

PREFIX: Final = "TRACKSIDE_"
HOST_CHARS: Final = 48  # a slot id is the host and a few more characters
_TEST_PROFILE_DIVISOR: Final = 10.0


def default_home(environ: Mapping[str, str]) -> Path:
    """The user's state directory, as the XDG base directory specification gives it."""
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local" / "state")
    return Path(base) / "trackside"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the services and the command line can be told. Times are seconds."""

    home: Path
    redis_url: str | None = None  # None: the server that `trackside up` runs for this home
    redis_password_file: Path | None = None  # keeps the password out of the environment and of process listings
    profile: str = "default"  # default | test
    data: Path | None = None  # jobs' folders and checkpoints; None: the home. Share one, and jobs move between hosts
    host: str | None = None  # this host's name on the bus; None: the machine's own
    log_format: str = "auto"  # auto: coloured on a terminal, JSON elsewhere | json | console
    log_level: str = "info"

    beat_s: float = 1.0  # a beat a second costs one pipeline of five commands a process
    beat_ttl_s: float = 4.0  # three lost beats and a margin: a garbage collection or a slow disk is no death
    silent_margin_s: float = 1.0  # on top of the TTL before a silent host is called lost
    tick_s: float = 0.1  # the supervisor's longest sleep between two looks
    control_poll_s: float = 0.2  # how often a worker reads what its job should do
    lease_ttl_s: float = 3.0  # the leading supervisor's; a killed one is succeeded within this
    stop_grace_s: float = 30.0  # from "stop at the next step" to SIGKILL
    stall_limit_s: float = 600.0  # no step for this long: stalled, while the run's own pace is not known
    stall_floor_s: float = 120.0  # the limit learned from the run's own steps is never shorter: evaluations take time
    save_limit_s: float = 1800.0  # one checkpoint in the step loop for this long: stalled
    startup_limit_s: float = 1800.0  # no first or second step for this long: stalled; compiling and loading are slow
    backoff_first_s: float = 2.0  # full jitter: a uniform draw from 0 to this, doubled each time
    backoff_max_s: float = 300.0
    retries: int = 4  # so five attempts in all, unless the job says otherwise
    poison_after: int = 3  # attempts in a row that brought no newer checkpoint
    breaker_after: int = 5  # different jobs that crashed in a row on one slot before it rests
    breaker_first_s: float = 10.0  # the slot's first rest; then up to twice as long each time
    breaker_max_s: float = 300.0
    restart_intensity: int = 5  # restarts of one process within restart_period_s before backoff grows to its cap
    restart_period_s: float = 60.0
    sample_s: float = 2.0  # GPU and process samples
    gpu_free_wait_s: float = 30.0  # for a GPU's memory after an attempt; then its slot is quarantined until it is back
    ship_s: float = 0.05  # journal and output go to the bus at most this often under load

    snapshot_max_bytes: int = 16 * 1024 * 1024
    params_max_bytes: int = 64 * 1024
    journal_max_bytes: int = 1 << 30  # of one attempt's; at 100 bytes a step that is ten million steps
    output_max_bytes: int = 64 * 1024 * 1024  # of one attempt's output shipped to the bus; the file keeps all

    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = 8321
    dashboard_public: bool = False  # may listen where others reach it: it has no login, so put one in front

    @property
    def host_name(self) -> str:
        """This host's name on the bus: a-z, 0-9 and '-'; raises ConfigurationError if none is left."""
        raw = self.host or socket.gethostname().partition(".")[0]
        plain = re.sub(r"[^a-z0-9]+", "-", raw.lower()).strip("-")[:HOST_CHARS].strip("-")
        if not plain:
            raise ConfigurationError(
                f"no host name can be made of {raw!r}: set TRACKSIDE_HOST to letters and digits",
                setting="TRACKSIDE_HOST",
            )
        return plain

    @property
    def data_dir(self) -> Path:
        """Where jobs' folders and checkpoints lie."""
        return (self.data or self.home).absolute()

    @property
    def scale(self) -> float:
        """What the profile divides times by."""
        return _TEST_PROFILE_DIVISOR if self.profile == "test" else 1.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read `TRACKSIDE_*`; raises ConfigurationError naming the first variable that cannot be used."""
        environ = os.environ if environ is None else environ
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for field in fields(cls):
            raw = environ.get(PREFIX + field.name.upper())
            if raw is not None and raw != "":
                given[field.name] = _parse(PREFIX + field.name.upper(), raw, hints[field.name])
        given.update({name: value for name, value in overrides.items() if value is not None})
        given.setdefault("home", default_home(environ))
        settings = cls(**given)
        if settings.profile not in ("default", "test"):
            raise ConfigurationError(f"TRACKSIDE_PROFILE is {settings.profile!r}: use 'default' or 'test'")
        if settings.scale != 1.0:
            times = {
                f.name: getattr(settings, f.name) / settings.scale
                for f in fields(cls)
                if f.name.endswith("_s") and f.name not in given
            }
            settings = replace(settings, **times)
        settings._check()
        return settings

    def _check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            name = PREFIX + field.name.upper()
            if isinstance(value, float) and not 0 < value < 1e9:
                raise ConfigurationError(f"{name} is {value}: give seconds above 0", setting=name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 0:
                raise ConfigurationError(f"{name} is {value}: give 0 or more", setting=name)
        if self.beat_ttl_s < 2 * self.beat_s:
            raise ConfigurationError(
                f"TRACKSIDE_BEAT_TTL_S is {self.beat_ttl_s} and TRACKSIDE_BEAT_S is {self.beat_s}: "
                "the TTL must be at least twice the beat, or one lost beat looks like a death",
                setting="TRACKSIDE_BEAT_TTL_S",
            )


def _parse(name: str, raw: str, kind: Any) -> Any:
    text = str(kind)
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[raw.lower()]
        if kind is int:
            return int(raw)
        if kind is float:
            return float(raw)
    except (ValueError, KeyError):
        what = {int: "a whole number", float: "a number of seconds", bool: "yes or no"}[kind]
        raise ConfigurationError(f"{name} is {raw!r}: give {what}", setting=name) from None
    return Path(raw).expanduser() if "Path" in text else raw
