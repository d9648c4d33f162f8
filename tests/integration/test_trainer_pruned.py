"""A checkpoint that was pruned while the bus was out of reach: the record never names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from makers import SLOT, SPEC
from trackside.bus.client import connect
from trackside.store import Store
from trackside_trainer.folders import Folders
from trackside_trainer.shipping import JournalTail

DIGEST = "0" * 64


def test_only_what_is_there_is_accepted(bus_urls: Mapping[str, str], fresh_home: Path) -> None:
    store = Store(connect(bus_urls["supervisor"]), by="supervisor:test")
    store.submit("j", "j", SPEC)
    store.assign("j", SLOT, lambda _, __: None)
    store.claim("j", 1, worker_pid=10)
    folders = Folders(data=fresh_home, job="j", attempt=1)
    folders.root.mkdir(parents=True)
    lines = (f'{{"k":"ck","t":1,"s":{step},"name":"step-0000000{step}-a1","digest":"{DIGEST}"}}\n' for step in (1, 2))
    folders.journal.write_text("".join(lines))
    (folders.checkpoints / "step-00000002-a1").mkdir(parents=True)
    told: list[int] = []
    tail = JournalTail(store, "j", 1, folders.journal, "disk", on_accepted=told.append)
    while tail.ship():
        pass
    assert [ref.step for ref in store.job("j").checkpoints] == [2]
    assert told == [2]
