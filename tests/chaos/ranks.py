"""One training in two processes: rank 0 is the attempt itself, rank 1 is spawned by the script; gloo joins them."""

from __future__ import annotations

from typing import Final

# Both ranks work on every step; rank 0 keeps the model, tells of the step and saves.
RANKS: Final = """
import argparse, datetime, hashlib, time
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import trackside

LIMIT = datetime.timedelta(hours=1)  # a rank that is gone is noticed by its connection, one that hangs not at all


def join(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=LIMIT)


def share(model, rank, step):
    \"\"\"The gradient of both ranks' data together; returns the loss.\"\"\"
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(2 * step + rank))
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    model.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total) / 2


def follow(index, store):
    join(1, store)
    model = torch.nn.Linear(8, 1)
    while True:
        step = torch.zeros(1, dtype=torch.long)
        dist.broadcast(step, 0)
        if step.item() == 0:
            dist.destroy_process_group()  # with its threads still in it, the interpreter's end aborts now and then
            return
        share(model, 1, step.item())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--step-ms", type=float, default=8.0)
    args = parser.parse_args()
    run = trackside.init()
    torch.manual_seed(7)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    state = run.checkpointer(model=model, optimizer=optimizer, every=20)
    store = str(run.dir / f"ranks-{run.attempt}")
    ranks = mp.spawn(follow, (store,), nprocs=1, join=False)
    join(0, store)
    for step in run.steps(args.steps):
        dist.broadcast(torch.tensor([step]), 0)
        loss = share(model, 0, step)
        optimizer.step()
        run.log(loss=loss)
        time.sleep(args.step_ms / 1000)
    dist.broadcast(torch.tensor([0]), 0)
    ranks.join()
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    run.summary["digest"] = hashlib.sha256(weights).hexdigest()


if __name__ == "__main__":
    main()
"""
