"""The slots of a host, from what `--slots` says (`trackside.slotgrammar`)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

from trackside import logs
from trackside.errors import ConfigurationError
from trackside.models import Slot
from trackside.processes import boot, is_this_boot
from trackside.slotgrammar import parse_slots
from trackside.wholefile import write_whole
from trackside_trainer.gpuwatch import NOT_YET

_AUTO_CPU_SLOTS: Final = 2  # a laptop goes on being one
_KNOWN: Final = ("uuid", "name", "memory_total_mib")

Gpus = Sequence[Mapping[str, Any]]


def parse(text: str, *, host: str, storage: str, find_gpus: Callable[[], Gpus], cores: int | None = None) -> list[Slot]:
    """The slots that `text` asks for; raises ConfigurationError when they cannot be had."""
    cores = cores or len(os.sched_getaffinity(0))
    choice = parse_slots(text)
    if choice.kind == "cpu":
        return _cpu_slots(choice.count or 1, host, storage, cores)
    gpus = find_gpus()
    if choice.kind == "auto" and not gpus:
        return _cpu_slots(min(_AUTO_CPU_SLOTS, cores), host, storage, cores)
    return _gpu_slots(gpus, choice.count, host, storage, cores)


def numbered(home: Path, gpus: Gpus) -> Gpus:
    """The GPUs, each with the `number` that its UUID has in this home; a new one gets the first that none ever had.

    The driver's order may change with a restart, and a worker that outlived it has its GPU still. Where it shows none,
    those are meant that it has shown since the machine or the container started: it may be on its way.
    """
    path = home / "run" / "gpus.json"
    try:
        numbers = {str(uuid): int(number) for uuid, number in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        numbers = {}
    if not gpus:
        return _shown_before(home, numbers)
    new = [str(gpu["uuid"]) for gpu in gpus if gpu.get("uuid") and gpu["uuid"] not in numbers]
    free = (number for number in count(0) if number not in numbers.values())
    for uuid, number in zip(new, list(islice(free, len(new))), strict=True):
        numbers[uuid] = number
    if new:
        _write(path, json.dumps(numbers))
    _note_shown(home, gpus)
    return [{**gpu, "number": numbers[str(gpu["uuid"])]} if gpu.get("uuid") else gpu for gpu in gpus]


def _note_shown(home: Path, gpus: Gpus) -> None:
    known = [{name: gpu.get(name) for name in _KNOWN} for gpu in gpus if gpu.get("uuid")]
    try:
        _write(home / "run" / "gpus-shown.json", json.dumps({"boot": boot(), "gpus": known}))
    except OSError as error:  # needed only where a later start is shown fewer
        logs.get().warning("gpus_not_noted", why=str(error))


def _shown_before(home: Path, numbers: Mapping[str, int]) -> Gpus:
    """The GPUs that the driver showed to the agent before, if that was in this boot."""
    try:
        shown = json.loads((home / "run" / "gpus-shown.json").read_text(encoding="utf-8"))
        if not is_this_boot(shown["boot"]):
            return []
        found = [{**gpu, "number": numbers[gpu["uuid"]]} for gpu in shown["gpus"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    logs.get().warning("gpus_not_shown", known=len(found), todo="try `nvidia-smi`; their slots wait for it")
    return found


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, text.encode())


def _cpu_slots(count: int, host: str, storage: str, cores: int) -> list[Slot]:
    threads = max(1, cores // count)
    return [Slot(id=f"{host}-cpu{at}", host=host, kind="cpu", storage=storage, threads=threads) for at in range(count)]


def _gpu_slots(gpus: Gpus, count: int | None, host: str, storage: str, cores: int) -> list[Slot]:
    known = sorted((gpu for gpu in gpus if gpu.get("uuid")), key=lambda gpu: int(gpu.get("number", 0)))
    if not known:
        raise ConfigurationError(
            "--slots asks for GPUs, and the NVIDIA driver shows none: try `nvidia-smi`, or use --slots cpu:2",
            setting="--slots",
        )
    if count is not None and not 1 <= count <= len(known):
        raise ConfigurationError(
            f"--slots is gpu:{count}, and this host has {len(known)} GPU(s): give gpu:{len(known)}, or gpu for all",
            setting="--slots",
        )
    chosen = known[:count]
    return [
        Slot(
            id=f"{host}-gpu{gpu.get('number', at)}",
            host=host,
            kind="gpu",
            storage=storage,
            threads=max(1, cores // len(chosen)),
            gpu_uuid=str(gpu["uuid"]),
            gpu_name=gpu.get("name"),
            gpu_memory_mib=gpu.get("memory_total_mib"),
            blocked=NOT_YET,
        )
        for at, gpu in enumerate(chosen)
    ]
