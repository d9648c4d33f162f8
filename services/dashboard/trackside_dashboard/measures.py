"""What a slot uses, by its worker's beat, or where that does not say, by its host's newest sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trackside.models import Beat, Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """Of the GPU on a GPU slot, else of the attempt's processes."""

    load_pct: float | None = None
    memory_mib: float | None = None
    temperature_c: float | None = None


def use(slot: Slot, beat: Beat | None, sample: Mapping[str, Any]) -> Use:
    """The use of a slot; nothing of a silent worker's slot but what the host says of its GPU."""
    if slot.kind == "gpu":
        gpu = _gpu(sample, slot.gpu_uuid)
        return Use(
            load_pct=_first(beat.gpu_util_pct if beat else None, gpu.get("util_pct")),
            memory_mib=_first(beat.gpu_memory_mib if beat else None, gpu.get("memory_used_mib")),
            temperature_c=_first(gpu.get("temperature_c")),
        )
    if beat is None:
        return Use()
    attempts = sample.get("attempts")
    found = attempts.get(slot.id) if isinstance(attempts, dict) else None
    told = found if isinstance(found, dict) else {}
    return Use(load_pct=_first(beat.cpu_pct, told.get("cpu_pct")), memory_mib=_first(beat.rss_mib, told.get("rss_mib")))


def _gpu(sample: Mapping[str, Any], uuid: str | None) -> Mapping[str, Any]:
    gpus = sample.get("gpus")
    if uuid is None or not isinstance(gpus, list):
        return {}
    return next((gpu for gpu in gpus if isinstance(gpu, dict) and gpu.get("uuid") == uuid), {})


def _first(*values: object) -> float | None:
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None
