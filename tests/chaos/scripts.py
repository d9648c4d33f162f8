"""A real training that harms itself when it is told to: the faults that only the training's own process can have."""

from __future__ import annotations

from typing import Final

# Every step depends on the one before and on the random state; `--fault` strikes at step `--at`, in the first attempt
# unless its name begins with "always". A file of the job's id in the folder `--poison` spoils one step's loss, unless
# fewer than three are left: it takes three in a row to show.
TRAIN: Final = """
import argparse, ctypes, hashlib, os, random, resource, shutil, time
import torch
import trackside

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=240)
parser.add_argument("--step-ms", type=float, default=8.0)
parser.add_argument("--cpu-ms", type=float, default=0.0)
parser.add_argument("--every", type=int, default=20)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--fault", default="none")
parser.add_argument("--at", type=int, default=70)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--poison", default=None)
args = parser.parse_args()

run = trackside.init()
torch.manual_seed(7)
model = torch.nn.Sequential(torch.nn.Linear(8, args.width), torch.nn.Dropout(0.2), torch.nn.Linear(args.width, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
state = run.checkpointer(model=model, optimizer=optimizer, every=args.every)
chance = random.Random(f"{args.seed} {run.attempt}")
children = []


class Hang(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        return index


loader = None
if args.fault == "loader":
    loader = iter(torch.utils.data.DataLoader(Hang(), batch_size=1, num_workers=2, prefetch_factor=2))


def strike(step):
    fault = args.fault
    first = run.attempt == 1 or fault.startswith("always")
    if fault == "transient":
        if chance.random() < 0.01:
            raise ConnectionError(f"chance of attempt {run.attempt}")
        return
    if fault == "flood":
        trackside.log(**{f"m{number}": float(step) for number in range(100)})
        return
    if not first or step != args.at:
        return
    if fault == "segfault":
        ctypes.string_at(0)
    elif fault == "always-raise":
        raise RuntimeError("the same every time")
    elif fault == "exit0":
        os._exit(0)
    elif fault == "always-exit0":
        os._exit(0)
    elif fault == "abort":
        os.abort()
    elif fault == "disk-full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    elif fault == "disk-gone":
        state.settle()  # what is being written would be in the way of the removal
        shutil.rmtree(run._checkpoints_dir)
        run._checkpoints_dir.write_text("in the way")
    elif fault == "memory":
        raise MemoryError("no memory left")
    elif fault == "hang":
        time.sleep(3600)
    elif fault == "gil-hang":
        lock = (ctypes.c_char * 64)()  # locked twice, so for ever, whatever signals come; Python's own lock is held
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(lock)
    elif fault == "fork":
        if os.fork() == 0:
            os.setsid()
            os.chdir("/")
            time.sleep(3600)
        os.kill(os.getpid(), 9)


def poisoned():
    if args.poison is None:
        return False
    try:
        os.unlink(os.path.join(args.poison, run.id))
    except FileNotFoundError:
        return False
    return True


for step in run.steps(args.steps):
    strike(step)
    if loader is not None:
        next(loader)
    x = torch.randn(32, 8)
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    if args.fault == "nan" and run.attempt == 1 and step >= args.at:
        loss = loss * float("nan")
    if (args.fault == "always-nan" and step >= args.at) or (step <= args.steps - 2 and poisoned()):
        loss = loss * float("nan")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
    time.sleep(args.step_ms / 1000)
    busy_until = time.process_time() + args.cpu_ms / 1000
    while time.process_time() < busy_until:
        pass
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
run.summary["digest"] = hashlib.sha256(weights).hexdigest()
print("finished", flush=True)
"""
