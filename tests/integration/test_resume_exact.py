"""A job that is killed or stopped anywhere ends with the very weights and losses of one that ran undisturbed.

Each attempt of an example runs in a process of its own, as a worker starts it. The kill is SIGKILL at a step drawn from
a seed. That equality means something is shown by `test_resume_points.py`, which leaves out one part after another.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attempts import context, records
from trackside.sdk.context import Program
from trackside.sdk.page import Command, ControlPage
from trackside.testing import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 60.0
STEPS = 40
EVERY = 6  # no divisor of STEPS
# An example's last line in its loop, and one that makes it stand in a step until it is killed or let go.
PACE = "        time.sleep(max(0.0, args.step_ms / 1000 - (time.monotonic() - began)))\n"
STAND = """\
        while os.environ.get("STANDS_IN") == str(run.step) and not os.path.exists("go"):
            time.sleep(0.001)
"""


def example_that_can_stand(name: str) -> str:
    """An example's text, with one line more: a step of 10 ms is over before a busy machine lets us strike."""
    text = (EXAMPLES / name).read_text()
    assert text.count(PACE) == text.count("import time\n") == 1
    return text.replace(PACE, PACE + STAND).replace("import time\n", "import os\nimport time\n")


@dataclass(frozen=True, kw_only=True)
class Result:
    """What must not depend on how often training was cut."""

    weights: str
    losses: str
    attempts: int


class Job:
    """One job's folder, and its attempts one after another."""

    def __init__(self, root: Path, script: str) -> None:
        self.root = root
        self.attempts = 0
        (root / "work").mkdir(parents=True)
        (root / "work" / "train.py").write_text(script)

    def start(self, stands_in: int = 0) -> tuple[subprocess.Popen[bytes], ControlPage]:
        self.attempts += 1
        folder = self.root / "attempts" / str(self.attempts)
        folder.mkdir(parents=True)
        argv = ("--steps", str(STEPS), "--every", str(EVERY), "--step-ms", "10")
        program = Program(kind="script", target="train.py", argv=argv)
        found = context(folder, self.attempts, root=self.root, files_dir=self.root / "files", program=program)
        found.to_file(folder / "attempt.json")
        page = ControlPage.create(folder / "page")
        process = subprocess.Popen(
            [sys.executable, "-m", "trackside.sdk.runner"],
            env={**os.environ, "TRACKSIDE_ATTEMPT": str(folder / "attempt.json"), "STANDS_IN": str(stands_in)},
        )
        return process, page

    def cut(self, at_step: int, command: Command | None = None) -> None:
        """Run an attempt until it has completed `at_step`, then kill it once it has saved, or give it the command."""
        process, page = self.start(stands_in=at_step + 1)
        try:
            wait_until(lambda: page.completed >= at_step, LIMIT_S, f"step {at_step} was never completed", every_s=0.001)
            if command is None:
                wait_until(self.saved, LIMIT_S, "no checkpoint was saved", every_s=0.001)
                process.kill()
            else:
                page.command = command
                (self.root / "work" / "go").touch()
            expected = -signal.SIGKILL if command is None else 75
            assert process.wait(LIMIT_S) == expected
        finally:
            process.kill()
            process.wait()

    def saved(self) -> list[Path]:
        return sorted((self.root / "checkpoints").glob("step-*"))

    def finish(self) -> Result:
        process, _ = self.start()
        assert process.wait(LIMIT_S) == 0
        return Result(weights=self.weights(), losses=self.losses(), attempts=self.attempts)

    def weights(self) -> str:
        state = torch.load(self.root / "files" / "model.pt", weights_only=True)
        found = hashlib.sha256()
        for name, tensor in sorted(state.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return found.hexdigest()

    def losses(self) -> str:
        """The hash of (step, loss), each step as its highest attempt told it."""
        canonical: dict[int, float] = {}
        for attempt in range(1, self.attempts + 1):
            for record in records(self.root / "attempts" / str(attempt) / "journal.jsonl", "m"):
                canonical[record["s"]] = record["m"]["loss"]
        assert sorted(canonical) == list(range(1, STEPS + 1))
        return hashlib.sha256(repr(sorted(canonical.items())).encode()).hexdigest()

    def first_steps(self) -> list[int]:
        """The first step of each attempt."""
        return [
            record["from"]
            for attempt in range(1, self.attempts + 1)
            for record in records(self.root / "attempts" / str(attempt) / "journal.jsonl", "begin")
        ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """The result of each example, run once from beginning to end."""
    return {
        example: Job(tmp_path_factory.mktemp("whole") / example, example_that_can_stand(example)).finish()
        for example in ("digits.py", "topics_lm.py")
    }


@pytest.mark.parametrize("example", ["digits.py", "topics_lm.py"])
def test_a_job_killed_twice_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: dict[str, Result], example: str
) -> None:
    rng = random.Random(example)
    first, second = rng.randrange(EVERY, STEPS // 2), rng.randrange(STEPS // 2, STEPS - 5)
    job = Job(tmp_path / "job", example_that_can_stand(example))
    job.cut(first)
    job.cut(second)
    result = job.finish()

    assert (result.weights, result.losses) == (undisturbed[example].weights, undisturbed[example].losses)
    starts = job.first_steps()
    assert starts[0] == 1 < starts[1] <= starts[2]
    assert all((start - 1) % EVERY == 0 for start in starts)


def test_a_paused_job_repeats_and_loses_no_step(tmp_path: Path, undisturbed: dict[str, Result]) -> None:
    job = Job(tmp_path / "job", example_that_can_stand("digits.py"))
    job.cut(EVERY + 2, Command.PAUSE)
    result = job.finish()

    assert (result.weights, result.losses) == (undisturbed["digits.py"].weights, undisturbed["digits.py"].losses)
    pages = [ControlPage.open(tmp_path / "job" / "attempts" / str(n) / "page") for n in (1, 2)]
    assert pages[1].first == pages[0].completed + 1


def test_a_job_whose_newest_checkpoint_is_damaged_still_ends_the_same(
    tmp_path: Path, undisturbed: dict[str, Result]
) -> None:
    job = Job(tmp_path / "job", example_that_can_stand("digits.py"))
    job.cut(3 * EVERY)
    newest = job.saved()[-1]
    content = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(content[: len(content) // 2])
    result = job.finish()

    assert (result.weights, result.losses) == (undisturbed["digits.py"].weights, undisturbed["digits.py"].losses)
    assert (tmp_path / "job" / "checkpoints" / f"damaged-{newest.name}").is_dir()
