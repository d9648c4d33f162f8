"""What an agent does before its first worker serves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from makers import SLOT
from trackside.bus import beats
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.models import Beat, Role
from trackside_trainer.agent import Agent


def test_beats_of_workers_that_died_with_their_agent_are_taken_back(
    bus_urls: Mapping[str, str], fresh_home: Path
) -> None:
    client = connect(bus_urls["trainer"])
    for slot in ("h-cpu0", "other-cpu0"):
        beat = Beat(role=Role.WORKER, name=slot, host="h", pid=1, started_at_ms=1, at_ms=0, slot=slot)
        beats.publish(client, beat, 60.0)
    settings = Settings.from_environ({"HOME": str(fresh_home)}, home=fresh_home)
    slots = [SLOT]

    Agent(settings, slots, bus_urls["trainer"], "h", "disk").adopt()

    assert set(beats.read(client)) == {"worker:other-cpu0"}, (
        "a slot without a worker looks alive, or another's was taken"
    )
