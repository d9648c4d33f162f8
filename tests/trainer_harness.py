"""A trainer service for tests: a real agent in its own process, driven through the store as the supervisor does it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from server_harness import TESTER_RULES, emptied, short_home, urls_by_user
from store_world import output_of
from supervisor_harness import FORK, supervise
from trackside.bus import beats, queue, streams
from trackside.bus.client import connect
from trackside.config import Settings
from trackside.errors import NotFound
from trackside.ids import new_job_id
from trackside.models import Attempt, AttemptState, Beat, Job, JobSpec, JobState, Outcome, Program, Slot
from trackside.processes import look
from trackside.server import EmbeddedServer, ServerBinary
from trackside.snapshots import pack
from trackside.store import Store
from trackside.testing import wait_until

START_LIMIT_S = 60.0  # importing torch on a busy machine
TTL_S = 1.0  # the tenth of the usual one, which the test profile has, is no silence on a busy machine yet
STEPS = """
import os, time, trackside
run = trackside.init()
for step in run.steps({total}):
    run.log(loss=1.0 / step)
    print("step", step, flush=True)
    time.sleep({pause})
"""


def steps_script(total: int, pause: float = 0.0) -> str:
    """A script that logs and prints each of its steps."""
    return STEPS.format(total=total, pause=pause)


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    found = look(pid)
    return found is not None and found.state not in "ZX"


class Trainer:
    """An agent with its slots. `urls` are a server's URLs by user."""

    def __init__(
        self,
        home: Path,
        urls: Mapping[str, str],
        *,
        slots: str = "cpu:1",
        settings: Mapping[str, float | str] = MappingProxyType({}),
        within: Sequence[str] = (),
    ) -> None:
        """`within` is put before the agent's command, and ends by executing it."""
        self.home, self.urls, self.slots, self.within = home, dict(urls), slots, within
        self.settings = {"profile": "test", "beat_ttl_s": TTL_S, "stop_grace_s": 10, **settings}
        self.client = connect(urls["supervisor"], command_limit_s=5.0)
        self.store = Store(self.client, by="supervisor:test")
        self.for_rq = queue.rq_client(urls["supervisor"])
        self.tester = connect(urls["tester"], command_limit_s=5.0)
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        for client in (self.client, self.for_rq, self.tester):
            client.close()

    def start(self) -> Self:
        """Start the agent and wait until it is heard, so that it has adopted, and each slot has a worker that beats."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("TRACKSIDE_")}
        env |= {f"TRACKSIDE_{name.upper()}": str(value) for name, value in self.settings.items()}
        env |= {"TRACKSIDE_HOME": str(self.home), "TRACKSIDE_HOST": "box"}
        env |= {"TRACKSIDE_REDIS_URL": self.urls["trainer"]}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "trackside_trainer", self.slots], env=env, stdout=log, stderr=log
            )
        wait_until(self.ready, START_LIMIT_S, "the trainer did not start: " + str(self.log))
        return self

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        agent, slots = beats.read(self.client).get("agent:box"), self.store.slots()
        started = agent is not None and agent.pid == self.process.pid
        return started and bool(slots) and all(self.beat(slot.id) is not None for slot in slots)

    def stop(self) -> int | None:
        """SIGTERM to the agent; its exit code."""
        if self.process is None:
            return None
        self.process.terminate()
        code = self.process.wait(30)
        self.process = None
        return code

    def kill_agent(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def beat(self, slot: str = "box-cpu0") -> Beat | None:
        """The worker's present beat."""
        return beats.read(self.client).get(f"worker:{slot}")

    def worker_pid(self, slot: str = "box-cpu0") -> int:
        beat = wait_until(lambda: self.beat(slot), 10, "no worker beats")
        assert beat is not None
        return beat.pid

    def slot(self, at: int = 0) -> Slot:
        return self.store.slots()[at]

    def assign(self, script: str | Mapping[str, str], *, slot: int = 0, **spec: Any) -> Job:
        """Submit a folder with this `train.py` (or these files), and give the job's first attempt to a slot."""
        return self.give(self.submit(script, **spec), slot=slot)

    def submit(self, script: str | Mapping[str, str], **spec: Any) -> str:
        """Submit a folder with this `train.py` (or these files); the job's id."""
        files = {"train.py": script} if isinstance(script, str) else dict(script)
        job_id = new_job_id("job")
        folder = self.home / "submitted" / job_id
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        snapshot = pack(folder, max_bytes=1 << 20)
        fields: dict[str, Any] = {"program": Program(kind="script", target="train.py"), "snapshot": snapshot.sha256}
        self.store.submit(job_id, "job", JobSpec(**{**fields, **spec}), snapshot.data)
        return job_id

    def give(self, job_id: str, *, slot: int = 0) -> Job:
        """Give a queued job's next attempt to a slot."""
        to = self.slot(slot)
        return self.store.assign(
            job_id, to, lambda pipe, job: queue.push(pipe, self.for_rq, job.id, job.attempt, to.id)
        )

    def attempt(self, job: Job) -> Attempt:
        return self.store.attempt(job.id, job.attempt)

    def ended(self, job: Job, timeout_s: float = 30.0) -> Outcome:
        """Wait for the end of the job's attempt; its outcome."""

        def outcome() -> Outcome | None:
            found = self.attempt(job)
            return found.outcome if found.state is AttemptState.ENDED else None

        found = wait_until(outcome, timeout_s, f"attempt of {job.id} did not end:\n{self.log.read_text()[-3000:]}")
        assert found is not None
        return found

    def running(self, job: Job, *, step: int = 1) -> int:
        """Wait until the attempt has done `step` steps as the bus sees it; its process id."""

        def pid() -> int | None:
            beat = self.beat(self.store.job(job.id).slot or "")
            if beat is None or beat.job != job.id or (beat.step or 0) < step:
                return None
            return beat.attempt_pid

        found = wait_until(pid, 30, f"{job.id} does not run:\n{self.log.read_text()[-3000:]}")
        assert found is not None
        return found

    def output(self, job: Job) -> str:
        return output_of(self.store, job.id)

    def says(self, job: Job, word: str) -> None:
        """Wait until the script has said that."""
        wait_until(lambda: word in self.output(job), 20, f"it did not say {word!r}")

    def steps(self, job: Job) -> list[int]:
        """The steps on the bus, in the order in which they came."""
        return [step for _, _, batch in streams.batches(self.client, job.id) for step in batch.steps]

    def pids_in_output(self, job: Job, count: int) -> list[int]:
        """Process ids that a script printed as `pid N`, once `count` are there."""

        def found() -> list[int]:
            pids = [int(number) for word, number in itertools.pairwise(self.output(job).split()) if word == "pid"]
            return pids if len(pids) >= count else []

        return wait_until(found, 20, f"no {count} pids in the output")

    def exists(self, job_id: str) -> bool:
        try:
            self.store.job(job_id)
        except NotFound:
            return False
        return True


@contextmanager
def server_and_trainer(binary: ServerBinary, **settings: float) -> Iterator[tuple[EmbeddedServer, Trainer]]:
    """A trainer with a server of its own, which may be stopped, frozen or killed."""
    with (
        short_home() as home,
        EmbeddedServer(home, binary=binary, extra_users={"tester": TESTER_RULES}) as server,
        Trainer(home / "trainer", urls_by_user(server), settings=settings) as trainer,
    ):
        yield server, trainer


@contextmanager
def trainer_on(server: EmbeddedServer, **settings: float) -> Iterator[Trainer]:
    """A trainer with a home of its own on a server that others use too, once all data is removed from that."""
    urls = emptied(server)
    with short_home() as home, Trainer(home, urls, settings=settings) as trainer:
        yield trainer


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def supervising(url: str, home: Path) -> Iterator[None]:
    """A supervisor in a process of its own."""
    settings = Settings.from_environ(
        {}, home=home, log_level="error", host="h", profile="test", lease_ttl_s=1.0, beat_ttl_s=TTL_S
    )
    process = FORK.Process(target=supervise, args=(url, settings))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(10)


def supervised(trainer: Trainer, *, rounds: int) -> None:
    """Wait until the supervisor has gone through that many rounds: in each it fails a job whose parent is cancelled."""
    parent = trainer.submit(steps_script(1))
    trainer.store.cancel(parent)
    for _ in range(rounds):
        child = trainer.submit(steps_script(1), after=(parent,))
        wait_until(lambda: trainer.store.job(child).state is JobState.FAILED, 20, "the supervisor does not look")  # noqa: B023 -- called at once
