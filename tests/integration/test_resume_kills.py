"""Whatever byte of a background save a SIGKILL comes at, every checkpoint that has its name loads.

One process imports torch and forks the trainings that are killed, so that many rounds take seconds. `ROUNDS` times a
kill at a moment drawn from a seed; the moments of all rounds together cover a save from its first byte to its last.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROUNDS = int(os.environ.get("TRACKSIDE_KILL_ROUNDS", "40"))

DRIVER = """
import json, os, random, select, signal, sys, time
from pathlib import Path
import torch
from trackside.errors import CheckpointError
from trackside.sdk import torch_state
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.checkpoints import CheckpointStore

torch.set_num_threads(1)
root, rounds = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(18)
result = {"rounds": 0, "cut": 0, "checked": 0, "unloadable": [], "untold": 0, "lost": 0}

def train(told):
    store = CheckpointStore(root, 1)
    model = torch.nn.Linear(700, 700)  # 2 MB
    saver = Checkpointer(store, {"model": model}, every=1, keep=2, resume=None,
                         emit=lambda record: os.write(told, json.dumps(record).encode() + b"\\n"))
    for step in range(saver.step + 1, 10**6):
        with torch.no_grad():
            model.weight.fill_(step)
        saver.save_step(step)
        time.sleep(0.001)

for number in range(rounds):
    heard, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            train(told)
        finally:
            os._exit(1)
    os.close(told)
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    lines = b""
    while lines.count(b'"ck"') < 2:
        assert poll.poll(20_000), "no checkpoint came"
        lines += os.read(heard, 65536)
    select.poll().poll(rng.uniform(0, 60))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while data := os.read(heard, 65536):
        lines += data
    os.close(heard)
    result["rounds"] += 1
    result["cut"] += any(path.name.startswith(".") for path in root.iterdir())
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
            weight = torch_state.load(checkpoint.path / "model.pt")["weight"]
            assert bool((weight == checkpoint.step).all())
        except (CheckpointError, AssertionError) as error:
            result["unloadable"].append(f"round {number}: {checkpoint.name}: {error!r}")
print(json.dumps(result))
"""


def test_no_kill_leaves_a_checkpoint_that_does_not_load(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(ROUNDS)], capture_output=True, text=True, timeout=230
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    assert result["unloadable"] == []
    assert result["lost"] == 0
    assert result["rounds"] == ROUNDS
    assert result["cut"] >= ROUNDS // 10  # else the kills came beside the saves and prove nothing
