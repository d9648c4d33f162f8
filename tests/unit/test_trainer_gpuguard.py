"""When a GPU is free, who holds it, and which errors take it out of service."""

from __future__ import annotations

from typing import Any

import pytest

from trackside_trainer.gpuguard import DRAIN, Seen, State, Verdict, judge

TOTAL_MIB = 81_559


def gpu(used_mib: float | None = 600, *, uuid: str = "GPU-a", **facts: Any) -> dict[str, Any]:
    return {"uuid": uuid, "memory_total_mib": TOTAL_MIB, "memory_used_mib": used_mib, "processes": [], **facts}


def process(pid: int, used_mib: float | None, kind: str = "compute") -> dict[str, Any]:
    return {"pid": pid, "used_mib": used_mib, "kind": kind}


def look(*gpus: dict[str, Any], seen: Seen | None = None, now_s: float = 0.0, **how: Any) -> tuple[Verdict, Seen]:
    return judge(gpus, "GPU-a", seen or Seen(), now_s, **how)


def test_a_gpu_with_nothing_but_what_its_driver_keeps_is_free() -> None:
    assert look(gpu())[0].state is State.FREE


def test_a_foreign_process_is_named_with_what_it_holds_and_since_when() -> None:
    held = gpu(21_000, processes=[process(7, 400), process(4242, 20_000)])
    first, seen = look(held, now_s=5.0)
    assert first.state is State.BUSY
    assert first.words == "process 4242 holds 20000 MiB, process 7 holds 400 MiB"
    later, _ = look(held, seen=seen, now_s=25.0)
    assert later.since_s == 5.0


def test_memory_that_nobody_is_shown_to_hold_makes_it_busy_all_the_same() -> None:
    _, seen = look(gpu(600))
    unseen: tuple[list[Any] | None, ...] = ([], None)
    for processes in unseen:
        verdict, _ = look(gpu(9_000, processes=processes), seen=seen)
        assert verdict.state is State.BUSY
        assert verdict.words == "9000 MiB of its memory are in use, and the driver does not show by whom"


@pytest.mark.parametrize(("used_mib", "state"), [(1_415, State.FREE), (1_416, State.BUSY)])
def test_memory_is_back_when_it_is_within_a_tolerance_of_the_least_that_was_ever_in_use(
    used_mib: float, state: State
) -> None:
    _, seen = look(gpu(600))  # one per cent of this GPU is 815.59 MiB
    assert look(gpu(used_mib), seen=seen)[0].state is state


def test_a_gpu_that_is_full_at_the_first_look_is_not_taken_for_an_idle_one() -> None:
    verdict, seen = look(gpu(40_000))
    assert verdict.state is State.BUSY
    assert look(gpu(40_000), seen=seen)[0].state is State.BUSY


def test_what_draws_on_a_screen_is_not_work() -> None:
    desktop = gpu(4_000, processes=[process(11, 3_500, "graphics")])
    _, seen = look(gpu(500))
    assert look(desktop, seen=seen)[0].state is State.FREE


def test_what_the_driver_does_not_tell_blocks_nothing() -> None:
    assert look({"uuid": "GPU-a"})[0].state is State.FREE
    assert look(gpu(None, processes=[process(7, None)]))[0].state is State.FREE
    assert look(gpu(None, processes=[process(7, 3_000)]))[0].state is State.BUSY


def test_our_own_attempt_s_memory_is_expected_and_teaches_nothing_about_idleness() -> None:
    verdict, seen = look(gpu(70_000, processes=[process(99, 69_000)]), own=[99])
    assert verdict.state is State.FREE
    assert seen.idle_mib is None
    ended, _ = look(gpu(70_000, processes=[process(99, 69_000)]), seen=seen, now_s=3.0)
    assert (ended.state, ended.since_s, ended.holders[0].pid) == (State.BUSY, 3.0, 99)


def test_a_gpu_is_known_by_its_uuid_whatever_its_place_in_the_list() -> None:
    free, full = gpu(600), gpu(50_000, uuid="GPU-b", processes=[process(7, 50_000)])
    assert look(free, full)[0].state is look(full, free)[0].state is State.FREE
    assert look(full)[0].state is State.GONE
    assert look({"uuid": "GPU-a", "lost": True, "xids": []})[0].state is State.GONE


@pytest.mark.parametrize("xid", [79, 48, 95, 64])
def test_an_error_of_the_hardware_drains_the_gpu_once(xid: int) -> None:
    sick = gpu(xids=[{"xid": 31, "at_ns": 5}, {"xid": xid, "at_ns": 6}])
    verdict, seen = look(sick)
    assert (verdict.drain, verdict.faults) == (xid, (31,))
    assert DRAIN[xid]
    again, seen = look(sick, seen=seen)
    assert (again.drain, again.faults) == (None, ())
    second, _ = look(gpu(xids=[*sick["xids"], {"xid": xid, "at_ns": 7}]), seen=seen)
    assert second.drain == xid


@pytest.mark.parametrize("xid", [13, 31, 43, 94])
def test_an_error_of_the_application_drains_nothing(xid: int) -> None:
    verdict, _ = look(gpu(xids=[{"xid": xid, "at_ns": 6}]))
    assert (verdict.drain, verdict.faults) == (None, (xid,))


def test_a_gpu_that_fell_off_the_bus_is_gone_and_drained_at_once() -> None:
    verdict, _ = look({"uuid": "GPU-a", "lost": True, "xids": [{"xid": 79, "at_ns": 1}]})
    assert (verdict.state, verdict.drain) == (State.GONE, 79)


@pytest.mark.parametrize(("bits", "slow"), [(0, False), (0x1, False), (0x4, False), (0x20, True), (0x48, True)])
def test_heat_and_power_brakes_are_told_and_a_power_cap_is_not(bits: int, slow: bool) -> None:
    assert bool(look(gpu(clock_event_reasons=bits))[0].throttled) is slow


def test_a_throttle_that_comes_and_goes_is_one() -> None:
    _, seen = look(gpu(clock_event_reasons=0x40), now_s=0.0)
    flickering, seen = look(gpu(clock_event_reasons=0), seen=seen, now_s=9.0)
    assert flickering.throttled
    over, _ = look(gpu(clock_event_reasons=0), seen=seen, now_s=11.0)
    assert over.throttled == ()
