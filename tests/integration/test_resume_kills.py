"""Whatever byte of a background save a SIGKILL comes at, every checkpoint that has its name loads.

One process imports torch and forks the trainings that are killed, so that many rounds take seconds. Each of `ROUNDS`
draws a number of bytes from a seed. Every other one dies of its own hand with exactly so many bytes in the files of a
save; the others are killed from outside as soon as a save's folder is seen to hold more, which mostly comes later: in
the middle of a flush, of the manifest, or of the renaming.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = int(os.environ.get("TRACKSIDE_KILL_ROUNDS", "40"))  # `make chaos` sets 200

DRIVER = """
import json, os, random, re, select, signal, sys, time
from pathlib import Path
import torch
from trackside.errors import CheckpointError
from trackside.sdk import torch_state
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore, HashingFile

torch.set_num_threads(1)
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(18)
SAVE = re.compile(r"\\.step-(\\d+)-a1\\.tmp-\\d+")
WHOLE = re.compile(r"step-(\\d+)-a1")
LAYERS, WIDTH = 8, 256
result = {"rounds": 0, "cut": 0, "cut_at": [], "checked": 0, "unloadable": [], "untold": 0, "lost": 0}

class Die:
    # Lets the third save have exactly `at` bytes, and no more.
    def __init__(self, at):
        self.at, self.told, self.write = at, 0, HashingFile.write
        HashingFile.write = lambda file, data: self.passed(file, data)

    def passed(self, file, data):
        if self.told < 2:
            return self.write(file, data)
        if len(data) > self.at:
            file._file.write(bytes(data)[: self.at])
            file._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.at -= len(data)
        return self.write(file, data)

def train(told, at):
    die = None if at is None else Die(at)

    def emit(record):
        os.write(told, json.dumps(record).encode() + b"\\n")
        if die is not None:
            die.told += record["k"] == "ck"

    store = CheckpointStore(root, 1)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))  # 2 MB
    saver = Checkpointer(store, {"model": model}, every=1, keep=2, resume=None, emit=emit)
    for step in range(saver.step + 1, 10**6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
        saver.save_step(step)
        time.sleep(0.001)

def unfinished():
    # What is being removed looks like the save that is under way, but is older than what is there.
    names = os.listdir(root)
    newest = max((int(match[1]) for match in map(WHOLE.fullmatch, names) if match), default=0)
    saves = [name for name in names if (match := SAVE.fullmatch(name)) and int(match[1]) > newest]
    return root / saves[0] if saves else None

def size(folder):
    try:
        return sum(each.stat().st_size for each in os.scandir(folder))
    except FileNotFoundError:
        return 0  # it has just got its name

def kill_past(pid, at):
    until = time.monotonic() + 20
    folder = None
    while time.monotonic() < until:
        if folder is None or not folder.exists():
            folder = unfinished()
        elif size(folder) > at:
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no save came past {at} bytes")

whole = 0
for number in range(rounds):
    at = rng.randrange(whole) if number % 2 else None
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            train(told, at)
        finally:
            os._exit(1)
    os.close(told)
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    lines = b""
    while lines.count(b'"ck"') < 2:
        assert poll.poll(20_000), "no checkpoint came"
        lines += os.read(heard, 65536)
    whole = json.loads(next(line for line in lines.splitlines() if b'"ck"' in line))["bytes"]
    if at is None:
        kill_past(pid, rng.randrange(whole))
    while poll.poll(20_000) and (data := os.read(heard, 65536)):
        lines += data
    os.close(heard)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    result["rounds"] += 1
    left = unfinished()
    if left is not None:
        result["cut"] += 1
        result["cut_at"].append(round(size(left) / whole, 3))
    records = [json.loads(line) for line in lines.splitlines() if line.endswith(b"}")]
    newest = max(record["s"] for record in records if record["k"] == "ck")
    store = CheckpointStore(root, 1)
    there = store.all()
    result["lost"] += newest not in [checkpoint.step for checkpoint in there]
    result["untold"] += there[0].step > newest
    for checkpoint in there:
        result["checked"] += 1
        try:
            store.verify(checkpoint)
            state = torch_state.load(checkpoint.path / "model.pt")
            assert all(bool((weight == checkpoint.step).all()) for weight in state.values())
        except (CheckpointError, AssertionError) as error:
            result["unloadable"].append(f"round {number}: {checkpoint.name}: {error!r}")
print(json.dumps(result))
"""


def test_no_kill_leaves_a_checkpoint_that_does_not_load(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(ROUNDS)], capture_output=True, text=True, timeout=590
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    assert result["unloadable"] == []
    assert result["lost"] == 0
    assert result["rounds"] == ROUNDS
    assert result["cut"] >= 0.9 * ROUNDS, "the kills came beside the saves and prove nothing"
    quarters = {min(3, int(4 * share)) for share in result["cut_at"]}
    assert quarters == {0, 1, 2, 3}, f"the kills came in one part of the saves only: {sorted(result['cut_at'])}"
