"""Faults around the server and its users: an outage at the very end, strangers, the same request twice, `rq info`."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from rq import Queue

from chaos.conftest import also
from chaos.rqinfo import Watch
from trackside import witness
from trackside.bus import keys
from trackside.bus.client import connect
from trackside.cli.faults import FAULTS, Fault, kill_training
from trackside.cli.rehearse import Baseline, Result, healed, judge, rehearse
from trackside.cli.scene import Harm, Scene, frozen
from trackside.cli.throwaway import Throwaway, now_ms
from trackside.errors import BusDenied
from trackside.models import Reason, Role
from trackside.oracle import Denial
from trackside.oracle.honesty import READER
from trackside.processes import look
from trackside.server import client_url
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]
BY_ID: Final = {fault.id: fault for fault in FAULTS}


def fault_of(id_: str, name: str, **facts: Any) -> Fault:
    return Fault(id=id_, name=name, inject=lambda _: Harm(at_ms=now_ms()), **facts)


@pytest.mark.chaos
def test_a_result_that_finds_no_server_is_delivered_later(
    system: Throwaway, script: Path, undisturbed: Baseline, judged: Callable[[Result], None]
) -> None:
    job_id = system.submit(script, "--step-ms", "30")  # more than a second is left when that step is seen
    beat = system.stepping(job_id, undisturbed.last_step - 40)
    up = system.beat(Role.LAUNCHER)
    at_ms = now_ms()
    with frozen([up.pid]):
        os.kill(up.children["redis"], signal.SIGKILL)
        wait_until(lambda: look(beat.attempt_pid or 0) is None, 30.0, "the training did not end without a server")
    system.ended(job_id, 30.0)
    worker = system.beats(Role.WORKER)
    result = judge(
        system, fault_of("F21", "server dead at a job's end", attempts_max=1), job_id, Harm(at_ms=at_ms), undisturbed
    )
    kept = () if beat.pid in {each.pid for each in worker} else ("the worker died of it",)
    judged(also(result, *kept))


@pytest.mark.chaos
def test_a_dashboard_that_was_taken_over_can_write_nothing(
    system: Throwaway, script: Path, undisturbed: Baseline, rng: random.Random, judged: Callable[[Result], None]
) -> None:
    def write_everywhere(scene: Scene) -> Harm:
        harm = Harm(at_ms=now_ms())
        client = connect(client_url(system.settings, "dashboard"))
        job_id = scene.job
        tries: dict[str, Callable[[], object]] = {
            "xadd": lambda: client.xadd(keys.metrics(job_id), {"d": "x"}, id="99-0"),
            "hset": lambda: client.hset(keys.job(job_id), "state", "cancelled"),
            "delete": lambda: client.delete(keys.job(job_id)),
            "publish": lambda: client.publish(keys.STATUS_CHANNEL, "x"),
            "lpush": lambda: client.lpush(f"rq:queue:slot-{system.store.slots()[0].id}", "x"),
        }
        for name, write in tries.items():
            try:
                write()
            except BusDenied:
                harm.denials.append(Denial(what=name, by=READER, refused=True))
            else:
                harm.denials.append(Denial(what=name, by=READER, refused=False))
        return harm

    fault = Fault(id="F55", name="dashboard's user writes", inject=write_everywhere, attempts_max=1, bystander=True)
    judged(rehearse(system, fault, lambda: system.submit(script), undisturbed, rng))


@pytest.mark.chaos
def test_a_forged_job_is_refused_and_the_worker_lives(
    system: Throwaway,
    script: Path,
    undisturbed: Baseline,
    rng: random.Random,
    judged: Callable[[Result], None],
    tmp_path: Path,
) -> None:
    ran = tmp_path / "ran"

    workers = {beat.slot: beat.pid for beat in system.beats(Role.WORKER)}

    def forge(scene: Scene) -> Harm:
        harm = Harm(at_ms=now_ms())
        busy, told = scene.worker().slot, refusals(system)
        with redis.Redis.from_url(client_url(system.settings, "trainer")) as client:
            for slot in system.store.slots():
                queue = Queue(f"slot-{slot.id}", connection=client, serializer="json")
                queue.enqueue("os.system", f"touch {ran}")
                client.lpush(f"rq:queue:slot-{slot.id}", "../../etc/passwd_1")
        idle = [name for name in workers if name != busy]
        wait_until(lambda: refusals(system) >= told + 2 * len(idle), 20.0, "nobody refuses what was forged")
        living = {beat.slot: beat.pid for beat in system.beats(Role.WORKER)}
        for name in idle:
            harm.denials.append(
                Denial(
                    what=f"have {name} run a function of the system", by="trainer", refused=not ran.exists(), told=True,
                    survived=living.get(name) == workers[name],
                )
            )  # fmt: skip
        return harm

    fault = Fault(id="F56", name="forged job on the queues", inject=forge, attempts_max=1)
    result = rehearse(system, fault, lambda: system.submit(script), undisturbed, rng)
    healed(system)  # the worker that was busy has met what was forged for it by then
    died = () if workers == {beat.slot: beat.pid for beat in system.beats(Role.WORKER)} else ("a worker died of it",)
    judged(also(result, *died, *(("the forged job ran",) if ran.exists() else ())))


def refusals(system: Throwaway) -> int:
    """How many of RQ's jobs the workers' logs say were refused."""
    return sum(path.read_bytes().count(b'"rq_job_refused"') for path in (system.home / "logs").glob("*.log"))


def test_the_same_submit_twice_is_one_job(
    system: Throwaway, script: Path, undisturbed: Baseline, judged: Callable[[Result], None]
) -> None:
    first = system.submit(script, options=("--id", "twice-1"))
    again = [system.submit(script, options=("--id", "twice-1")) for _ in range(2)]
    system.ended(first)
    again.append(system.submit(script, options=("--id", "twice-1")))
    result = judge(
        system, fault_of("F58", "same submit four times", attempts_max=1), first, Harm(at_ms=now_ms()), undisturbed
    )
    other = () if set(again) == {first} else ("another job came of it",)
    judged(also(result, *other))


def test_rq_info_lists_all_the_while_and_may_write_nothing_of_ours(system: Throwaway, rq_info: Watch) -> None:
    """Without this, nobody would know that it was there when the promises above were held."""
    before = rq_info.listings
    wait_until(lambda: rq_info.listings > before, 20.0, "rq info lists nothing")
    assert rq_info.tracebacks == 0
    operator = connect(client_url(system.settings, "operator"))
    writes: tuple[Callable[[], object], ...] = (
        lambda: operator.delete(keys.JOBS),
        lambda: operator.zremrangebyscore(keys.JOBS, "-inf", "+inf"),
        lambda: operator.srem(keys.SLOTS, "x"),
    )
    for write in writes:
        with pytest.raises(BusDenied):
            write()


def test_a_run_that_was_over_before_it_could_be_harmed_is_submitted_again(
    system: Throwaway, script: Path, undisturbed: Baseline, rng: random.Random
) -> None:
    jobs: list[str] = []

    def late_at_first(scene: Scene) -> Harm:
        jobs.append(scene.job)
        if len(jobs) == 1:
            system.ended(scene.job)
        return kill_training(scene)

    fault = Fault(id="X", name="killed too late at first", inject=late_at_first, reasons=(frozenset({Reason.KILLED}),))
    result = rehearse(system, fault, lambda: system.submit(script), undisturbed, rng)
    assert result.held, result.error or result.violations
    assert result.job == jobs[1]
    assert len(jobs) == 2


def test_the_witness_sees_the_processes_of_an_attempt(system: Throwaway, script: Path, undisturbed: Baseline) -> None:
    """Without this, no orphan would ever be found."""
    job_id = system.submit(script, "--step-ms", "1000")  # it is still there when it is looked for
    beat = system.stepping(job_id, 1)
    assert witness.processes(system.home)[beat.attempt_pid or 0] == (job_id, 1)
    system.store.cancel(job_id)
    system.ended(job_id)
