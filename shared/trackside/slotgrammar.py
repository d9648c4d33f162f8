"""What may be said with `--slots`; the command line checks it at once, the trainer makes slots of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from trackside.errors import ConfigurationError

MAX_CPU_SLOTS: Final = 256
FORMS: Final = "auto|cpu:N|gpu|gpu:N"
_FORM: Final = re.compile(r"(auto)|(cpu):([0-9]{1,9})|(gpu)(?::([0-9]{1,9}))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotChoice:
    """Which slots a host is to offer."""

    kind: str  # auto | cpu | gpu
    count: int | None = None  # None: as many as there are


def parse_slots(text: str) -> SlotChoice:
    """What `text` asks for; raises ConfigurationError with the forms that there are."""
    found = _FORM.fullmatch(text.strip().lower())
    if found is not None:
        kind, number = found[1] or found[2] or found[4], found[3] or found[5]
        count = None if number is None else int(number)
        if count is None or (count > 0 and (kind == "gpu" or count <= MAX_CPU_SLOTS)):
            return SlotChoice(kind=kind, count=count)
    raise ConfigurationError(
        f"--slots is {text!r}: give auto, cpu:N with N from 1 to {MAX_CPU_SLOTS}, gpu, or gpu:N for the first N GPUs",
        setting="--slots",
    )
