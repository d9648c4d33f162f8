"""What the agent's watch over its GPUs tells the store, also where the bus fails it halfway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from trackside.bus import streams
from trackside.bus.client import connect
from trackside.errors import BusUnavailable
from trackside.models import Slot
from trackside.store import Store
from trackside_trainer.gpuwatch import NO_ANSWER, GpuWatch

SLOT = Slot(id="box-gpu0", host="box", kind="gpu", storage="s1", gpu_uuid="GPU-a")
BROKEN: dict[str, Any] = {
    "uuid": "GPU-a", "memory_total_mib": 1000, "memory_used_mib": 1, "xids": [{"xid": 79, "at_ns": 1}],
}  # fmt: skip


class OneCordonFails(Store):
    """The bus goes away just when the first cordon is asked for."""

    fails = True

    def cordon(self, slot_id: str, *, cordoned: bool, why: str | None = None) -> Slot:
        if self.fails:
            self.fails = False
            raise BusUnavailable("no server answers: start it")
        return Store.cordon(self, slot_id, cordoned=cordoned, why=why)


@pytest.fixture
def store(bus_urls: Mapping[str, str]) -> OneCordonFails:
    return OneCordonFails(connect(bus_urls["trainer"]), by="agent:box")


def test_a_broken_gpu_s_cordon_outlives_a_bus_that_fails_it(store: OneCordonFails) -> None:
    watch = GpuWatch([SLOT], wait_s=1.0)
    store.register_slot(SLOT)
    watch.look([BROKEN], {}, 1.0)
    with pytest.raises(BusUnavailable):
        watch.tell(store)
    assert watch.has_news, "it would not be asked again"
    watch.tell(store)

    (slot,) = store.slots()
    assert (slot.cordoned, slot.blocked) == (True, None)
    assert "Xid 79" in (slot.cordon_reason or "")
    causes = [event.cause for _, event in streams.newest_events(store.client, 50) if event is not None]
    assert causes.count("gpu broken") == 1
    assert not watch.has_news


def test_a_broken_gpu_s_cordon_waits_for_a_slot_that_the_server_has_lost(store: OneCordonFails) -> None:
    store.fails = False
    watch = GpuWatch([SLOT], wait_s=1.0)
    watch.look([BROKEN], {}, 1.0)
    watch.tell(store)
    assert not watch.has_news, "it is asked in every look"
    store.register_slot(SLOT)
    watch.forget_told()
    watch.tell(store)
    assert [slot.cordoned for slot in store.slots()] == [True]

    store.cordon(SLOT.id, cordoned=False)
    watch.forget_told()
    watch.tell(store)
    assert [slot.cordoned for slot in store.slots()] == [False], "what a person has put back is taken out again"


def test_a_driver_that_does_not_answer_blocks_its_slots_until_it_does(store: OneCordonFails) -> None:
    watch = GpuWatch([SLOT], wait_s=1.0)
    store.register_slot(SLOT)
    held = {**BROKEN, "xids": [], "memory_used_mib": 900}
    heard: list[str | None] = []
    for now_s, gpu in enumerate(({**held, "memory_used_mib": 1}, None, None, held, held, None, held, held)):
        if gpu is None:
            watch.no_answer(now_s)
        else:
            watch.look([gpu], {}, now_s)
        watch.tell(store)
        heard.append(store.slots()[0].blocked)

    assert heard[:3] == [None, NO_ANSWER, NO_ANSWER]
    assert ["in use" in (words or "") for words in (heard[4], heard[7])] == [True, True]
    assert heard[5] == NO_ANSWER
    causes = [event.cause for _, event in streams.newest_events(store.client, 50) if event is not None]
    assert causes.count("gpu driver does not answer") == causes.count("gpu driver answers again") == 2
    watch.look([{**held, "memory_used_mib": 1}], {}, 9)
    watch.tell(store)
    assert store.slots()[0].blocked is None
