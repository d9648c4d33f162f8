"""Trains a small convolutional network on scikit-learn's handwritten digits.

trackside submit examples/digits.py -- --steps 3000
python examples/digits.py               # by itself; run it again after Ctrl-C and it goes on where it was
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import trackside
from trackside.sdk.determinism import EpochSampler, deterministic, permutation

BATCH = 64
TRAINED_ON = 1437  # of 1797 images; the others are the test


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--step-ms", type=float, default=0.0, help="least time a step takes, to slow a demo down")
    return parser.parse_args()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(64, 10),
    )


def main() -> None:
    args = arguments()
    run = trackside.init()
    deterministic(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    digits = load_digits()
    order = permutation(0, 0, len(digits.target))  # the same split whatever the seed; the file is sorted by writer
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)[order]  # [sample, 1, row, column]
    labels = torch.tensor(digits.target)[order]

    model = network().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(args.steps, 1))
    state = run.checkpointer(model=model, optimizer=optimizer, schedule=schedule, every=args.every)

    sampler = EpochSampler(TRAINED_ON, seed=args.seed, start=state.step * BATCH)
    data = TensorDataset(images[:TRAINED_ON], labels[:TRAINED_ON])
    model.train()
    for _, (x, y) in zip(run.steps(args.steps), DataLoader(data, BATCH, sampler=sampler), strict=False):
        began = time.monotonic()
        loss = cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss=loss, lr=schedule.get_last_lr()[0])
        schedule.step()
        time.sleep(max(0.0, args.step_ms / 1000 - (time.monotonic() - began)))

    model.eval()
    with torch.no_grad():
        scores = model(images[TRAINED_ON:].to(device)).cpu()
    run.summary["test_loss"] = cross_entropy(scores, labels[TRAINED_ON:])
    run.summary["test_accuracy"] = (scores.argmax(1) == labels[TRAINED_ON:]).float().mean()
    torch.save(model.state_dict(), run.dir / "model.pt")


if __name__ == "__main__":
    main()
