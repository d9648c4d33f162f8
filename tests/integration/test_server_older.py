"""A server that comes back empty or older: noticed at once, nothing runs twice, and the records are rebuilt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from chaos.proxy import Proxy
from server_harness import free_port
from system import TRAIN, System, running_system
from trackside import oracle, witness
from trackside.bus import streams
from trackside.cli.faults import frozen
from trackside.models import Beat, Event, EventKind, Job, JobState, Reason, Role
from trackside.processes import look
from trackside.retry import until_reachable
from trackside.server import ServerBinary
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
QUICK = {
    "beat_s": "0.25", "beat_ttl_s": "1.5", "silent_margin_s": "0.5", "lease_ttl_s": "1.5", "backoff_first_s": "0.2",
    "backoff_max_s": "0.5", "stop_grace_s": "5", "log_format": "json",
}  # fmt: skip
STEPS = 400
SLOWLY = ("--step-ms", "50")  # a command, or the death of a server, has to come before the end on a busy machine too
WAITED_S = 60.0


@pytest.fixture
def hurry(tmp_path: Path) -> Path:
    """Once it is there, no training takes its time any more."""
    return tmp_path / "hurry"


@pytest.fixture
def script(tmp_path: Path, hurry: Path) -> Path:
    """`TRAIN`, which is slow until it may hurry."""
    path, pace = tmp_path / "train.py", "time.sleep(args.step_ms / 1000)"
    assert pace in TRAIN
    path.write_text(TRAIN.replace(pace, f"__import__('os').path.exists({str(hurry)!r}) or {pace}"))
    return path


@contextmanager
def system_in(home: Path, **settings: str) -> Iterator[System]:
    with running_system(home, "--slots", "cpu:1", "--no-dashboard", **QUICK, **settings) as system:
        yield system


def data(system: System) -> Path:
    return system.home / "redis" / "appendonlydir"


@contextmanager
def server_down(system: System) -> Iterator[None]:
    """The server is killed, and stays away until its data has been seen to; the launcher starts it again."""
    up = wait_until(lambda: system.beat(Role.LAUNCHER), 10.0, "the launcher does not beat")
    assert up is not None
    pid = up.children["redis"]
    with frozen([up.pid]):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: (found := look(pid)) is None or found.state == "Z", 10.0, "the server did not die")
        yield


def told(system: System, service: str, event: str) -> list[dict[str, object]]:
    """What a service logged under that name."""
    written = (system.home / "logs" / f"{service}.log").read_text()
    whole = written[: written.rfind("\n") + 1]  # the last line may be on its way
    found = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [line for line in found if line.get("event") == event]


def back(system: System, job_id: str) -> Job:
    """The job's record once the server has it again."""

    def there() -> Job | None:
        found = until_reachable(lambda: system.store.jobs([job_id]), limit_s=WAITED_S)
        return found[0] if found else None

    job = wait_until(there, 30.0, f"{job_id} did not come back")
    assert job is not None
    return job


def noted(system: System, job_id: str) -> list[Event]:
    """The job's events, once the ledger has them: what came in the moment before the server died may be lost."""
    events = list(streams.history(system.client, job_id))
    newest = f'{{"k":"event","id":"{events[-1][0]}"'

    def there() -> bool:
        return any(newest in path.read_text() for path in (system.home / "ledger").glob("*.jsonl"))

    wait_until(there, 20.0, "the ledger does not take it in")
    return [event for _, event in events]


def rebuilt(system: System, job_id: str) -> int:
    return sum(event.cause == "records rebuilt" for event in system.events(job_id))


def assert_right(system: System, job_ids: list[str]) -> None:
    history = witness.read(system.store, job_ids, home=system.home)
    assert oracle.check(history) == []


def undisturbed(system: System, script: Path) -> dict[int, float]:
    job_id = system.submit(script, args=("--steps", str(STEPS), "--step-ms", "1"))
    assert system.ended(job_id).state is JobState.SUCCEEDED
    return system.series(job_id, "loss")


def test_a_server_that_comes_back_empty_gets_its_records_back_and_nothing_runs_twice(
    fresh_home: Path, script: Path, hurry: Path
) -> None:
    with system_in(fresh_home) as system:
        expected = undisturbed(system, script)
        done = system.store.job_ids()[0]
        runs = system.submit(script, args=("--steps", str(STEPS), *SLOWLY))
        queued = system.submit(script, args=("--steps", "20", "--step-ms", "1"))
        beat = system.stepping(runs, 50)
        noted(system, queued)
        before = noted(system, runs)

        with server_down(system):
            shutil.rmtree(data(system))

        assert back(system, runs).attempt == 1
        again = system.stepping(runs, (beat.step or 0) + 20)
        assert again.attempt_pid == beat.attempt_pid, "the training was disturbed"
        hurry.touch()
        assert system.events(runs)[: len(before)] == before
        assert system.ended(runs).state is JobState.SUCCEEDED
        assert system.ended(queued).state is JobState.SUCCEEDED
        assert back(system, done).state is JobState.SUCCEEDED

        assert [(job.id, job.attempt) for job in system.store.jobs([done, runs, queued])] == [
            (done, 1), (runs, 1), (queued, 1),
        ]  # fmt: skip
        assert system.series(runs, "loss") == expected
        assert [rebuilt(system, job_id) for job_id in (done, runs, queued)] == [1, 1, 1]
        assert "rebuilt from the ledger" in system.cli("why", runs)
        assert_right(system, [done, runs, queued])


def assert_attempt_2_went_on(
    system: System, job_id: str, second: Beat, before: list[Event], expected: dict[int, float], hurry: Path
) -> None:
    """Nothing but attempt 2 ran since the server knew attempt 1 only, and the result is the undisturbed one."""
    wait_until(lambda: until_reachable(lambda: rebuilt(system, job_id), limit_s=WAITED_S), 20.0, "no rebuild")
    again = system.stepping(job_id, (second.step or 0) + 20)
    assert (again.attempt, again.attempt_pid) == (2, second.attempt_pid), "another attempt took over"
    hurry.touch()
    assert system.events(job_id)[: len(before)] == before
    assert system.ended(job_id).state is JobState.SUCCEEDED

    given = [event.attempt for event in system.events(job_id) if event.kind is EventKind.ASSIGNED]
    assert given == [1, 2]
    ends = [attempt.outcome and attempt.outcome.reason for attempt in system.attempts(job_id)]
    assert ends == [Reason.KILLED, Reason.SUCCEEDED]
    assert system.series(job_id, "loss") == expected
    assert_right(system, [job_id])


def test_an_empty_server_gets_the_curves_of_earlier_attempts_back_from_their_journals(
    fresh_home: Path, script: Path, hurry: Path
) -> None:
    with system_in(fresh_home) as system:
        expected = undisturbed(system, script)
        job_id = system.submit(script, args=("--steps", str(STEPS), *SLOWLY))
        for number, step in ((1, 30), (2, 60)):
            beat = system.stepping(job_id, step)
            assert beat.attempt_pid is not None
            system.kill(beat.attempt_pid)
            wait_until(lambda at=number: system.job(job_id).attempt > at, 20.0, "no attempt followed")  # type: ignore[misc]  # mypy cannot see the default's type
        third = system.stepping(job_id, 90)
        noted(system, job_id)

        with server_down(system):
            shutil.rmtree(data(system))

        assert back(system, job_id).attempt == 3
        assert system.stepping(job_id, (third.step or 0) + 20).attempt_pid == third.attempt_pid
        hurry.touch()
        assert system.ended(job_id).state is JobState.SUCCEEDED
        assert system.series(job_id, "loss") == expected
        assert_right(system, [job_id])


def test_a_server_that_comes_back_empty_while_a_job_is_paused_costs_its_curve_nothing(
    fresh_home: Path, script: Path, hurry: Path
) -> None:
    with system_in(fresh_home) as system:
        expected = undisturbed(system, script)
        job_id = system.submit(script, args=("--steps", str(STEPS), *SLOWLY))
        for number, step in ((1, 30), (2, 60)):
            system.stepping(job_id, step)
            system.cli("pause", job_id)
            wait_until(lambda: system.job(job_id).state is JobState.PAUSED, 20.0, "it does not pause")
            noted(system, job_id)

            with server_down(system):
                shutil.rmtree(data(system))

            assert back(system, job_id).attempt == number
            wait_until(lambda: until_reachable(lambda: rebuilt(system, job_id), limit_s=WAITED_S), 20.0, "no rebuild")
            system.cli("resume", job_id)
        hurry.touch()
        assert system.ended(job_id).state is JobState.SUCCEEDED
        assert system.series(job_id, "loss") == expected
        assert_right(system, [job_id])


def test_an_older_copy_takes_no_number_back(fresh_home: Path, script: Path, tmp_path: Path, hurry: Path) -> None:
    copy = tmp_path / "copy"
    with system_in(fresh_home) as system:
        expected = undisturbed(system, script)
        job_id = system.submit(script, args=("--steps", str(STEPS), *SLOWLY))
        first = system.stepping(job_id, 30)
        shutil.copytree(data(system), copy)
        assert first.attempt_pid is not None
        system.kill(first.attempt_pid)
        wait_until(lambda: system.job(job_id).attempt == 2, 20.0, "the killed attempt was not followed by another")
        second = system.stepping(job_id, 60)
        before = noted(system, job_id)

        with server_down(system):
            shutil.rmtree(data(system))
            shutil.copytree(copy, data(system))

        assert_attempt_2_went_on(system, job_id, second, before, expected, hurry)


def test_without_a_ledger_it_is_said_loudly_and_nothing_runs_again(
    fresh_home: Path, script: Path, tmp_path: Path, hurry: Path
) -> None:
    copy = tmp_path / "copy"
    with system_in(fresh_home) as system:
        job_id = system.submit(script, args=("--steps", "300", *SLOWLY))
        beat = system.stepping(job_id, 30)
        up = system.beat(Role.LAUNCHER)
        assert up is not None
        assert beat.attempt_pid is not None

        with server_down(system):
            os.kill(up.children["supervisor"], signal.SIGKILL)
            shutil.move(data(system), copy)
            shutil.rmtree(system.home / "ledger")

        wait_until(
            lambda: told(system, "supervisor", "jobs_unknown_to_the_server"), 20.0, "the supervisor says nothing"
        )
        wait_until(lambda: told(system, "trainer", "server_is_behind"), 10.0, "the trainer says nothing")
        wait_until(system.store.slots, 10.0, "the agent's slots did not come back by themselves")
        hurry.touch()
        wait_until(lambda: look(beat.attempt_pid or 0) is None, 30.0, "the training did not go on to its end")
        assert "server's data" in system.cli("doctor", code=0)
        assert system.store.jobs([job_id]) == []
        assert [path.name for path in (system.home / "jobs" / job_id / "attempts").iterdir()] == ["1"]

        with server_down(system):  # what the log says to do
            shutil.rmtree(data(system))
            shutil.copytree(copy, data(system))

        assert back(system, job_id).attempt == 1
        assert system.ended(job_id).state is JobState.SUCCEEDED
        assert list(system.series(job_id, "loss")) == list(range(1, 301))
        assert_right(system, [job_id])


def test_data_that_was_deleted_while_all_was_stopped_is_rebuilt_at_the_start(
    fresh_home: Path, script: Path, hurry: Path
) -> None:
    with system_in(fresh_home) as system:
        job_id = system.submit(script, args=("--steps", "200", *SLOWLY))
        reached = system.stepping(job_id, 30).step or 0
    shutil.rmtree(fresh_home / "redis")
    hurry.touch()

    with system_in(fresh_home) as system:
        job = back(system, job_id)
        assert job.checkpoints, "the checkpoints to go on from are lost"
        assert system.ended(job_id).state is JobState.SUCCEEDED
        assert [attempt.number for attempt in system.attempts(job_id)] == [1, 2]
        second = system.attempts(job_id)[1]
        assert (second.resumed_step or 0) >= reached, "it began anew"
        assert rebuilt(system, job_id) == 1


@contextmanager
def plain_server(binary: ServerBinary, folder: Path, *options: str) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A server without users or files; its socket and its process."""
    folder.mkdir()
    socket = folder / "redis.sock"
    command = [str(binary.path), "--unixsocket", str(socket), "--dir", str(folder), "--save", "", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            wait_until(lambda: answers(client), 20.0, "the server did not start")
        yield socket, process
    finally:
        process.kill()
        process.wait(10)


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


@pytest.mark.chaos
def test_a_promoted_replica_that_misses_the_last_writes_takes_no_number_back(
    fresh_home: Path, script: Path, server_binary: ServerBinary, hurry: Path
) -> None:
    port = str(free_port())
    home = fresh_home / "home"
    with (
        plain_server(server_binary, fresh_home / "a", "--port", port) as (primary, process),
        plain_server(server_binary, fresh_home / "b", "--port", "0", "--replicaof", "127.0.0.1", port) as (other, _),
        Proxy(primary, 7) as proxy,
        system_in(home, redis_url=f"redis://127.0.0.1:{proxy.port}/0") as system,
        redis.Redis(unix_socket_path=str(other)) as replica,
    ):
        expected = undisturbed(system, script)
        job_id = system.submit(script, args=("--steps", str(STEPS), *SLOWLY))
        first = system.stepping(job_id, 30)
        wait_until(lambda: replica.hget(f"ts:job:{job_id}", "attempt") == b"1", 20.0, "the replica does not follow")
        replica.replicaof("NO", "ONE")
        assert first.attempt_pid is not None
        system.kill(first.attempt_pid)
        wait_until(lambda: system.job(job_id).attempt == 2, 20.0, "the killed attempt was not followed by another")
        second = system.stepping(job_id, 60)
        before = noted(system, job_id)

        process.kill()
        proxy.upstream = other
        proxy.reset_all()

        assert_attempt_2_went_on(system, job_id, second, before, expected, hurry)
