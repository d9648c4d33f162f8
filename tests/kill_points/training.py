"""Three trainings that between them use every part of a checkpoint; each job runs a copy of this file as a script.

    mlp          generated points     SGD with momentum, steps of the rate, noise from a generator of its own; epochs
    cnn          handwritten digits   AdamW, dropout, mixup drawn by numpy, a gradient scaler
    transformer  Python's help texts  AdamW, dropout, words hidden by Python's generator, an averaged model, `extra`

The loader shifts or disturbs each sample of the last two; that randomness belongs to the sample, not to a process.
The SHA-256 of all that training leaves behind goes into the summary, and that of each part into `final.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Any, Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, one_hot, pad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import trackside
from trackside.sdk import torch_state
from trackside.sdk.checkpointer import Checkpointer
from trackside.sdk.determinism import EpochIndexSampler, deterministic, permutation, sample_generator

SEED: Final = 11
BATCH: Final = 16
CONTEXT: Final = 24
ALPHABET: Final = 128
HIDDEN: Final = 0  # the character that stands for a hidden one


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training: its parts by the names under which they are saved, and the loss of one batch."""

    data: Dataset[Any]
    parts: Mapping[str, Any]
    loss: Callable[[Checkpointer, torch.Tensor, torch.Tensor], torch.Tensor]
    by_epoch: bool = False  # whether the loader is iterated anew for each epoch


class Augmented(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples, each changed by randomness of its own: (epoch, index) says which."""

    def __init__(
        self,
        data: TensorDataset,
        change: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    ) -> None:
        self.data, self.change = data, change

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = at
        x, y = self.data[index]
        return (x, y) if self.change is None else (self.change(x, sample_generator(SEED, epoch, index)), y)


def mlp(steps: int) -> Task:
    points = torch.randn(150, 32, generator=sample_generator(0, 0, 0))
    labels = (points[:, :4].sum(1) > 0).long() + 2 * (points[:, 4:8].sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noise = torch.Generator().manual_seed(SEED)

    def loss(state: Checkpointer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(x + 0.1 * torch.randn(x.shape, generator=noise)), y)

    return Task(
        data=Augmented(TensorDataset(points, labels)),
        parts={
            "model": model,
            "optimizer": optimizer,
            "schedule": torch.optim.lr_scheduler.StepLR(optimizer, steps // 7, gamma=0.8),
            "noise": noise,
        },
        loss=loss,
        by_epoch=True,
    )


def cnn(steps: int) -> Task:
    digits = load_digits()
    order = permutation(0, 0, len(digits.target))[:300]
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)[order]  # [sample, 1, row, column]
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Dropout(0.3), nn.Linear(8 * 4 * 4, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def shifted(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        down, right = torch.randint(3, (2,), generator=generator).tolist()
        return pad(image, (1, 1, 1, 1))[:, down : down + 8, right : right + 8]

    def loss(state: Checkpointer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        share = float(np.random.beta(0.4, 0.4))
        other = torch.roll(torch.arange(len(x)), 1)
        labels = one_hot(y, 10).float()
        return cross_entropy(model(share * x + (1 - share) * x[other]), share * labels + (1 - share) * labels[other])

    return Task(
        data=Augmented(TensorDataset(images, torch.tensor(digits.target)[order]), shifted),
        parts={
            "model": model,
            "optimizer": optimizer,
            "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=5),
        },
        loss=loss,
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(ALPHABET, 32)
        self.places = nn.Parameter(torch.zeros(CONTEXT, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(32, ALPHABET)
        self.head.weight = self.characters.weight  # tied: one tensor under two names
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [batch, place] -> [batch, place, character]
        hidden = self.layers(self.characters(x) + self.places, mask=self.mask, is_causal=True)
        scores: torch.Tensor = self.head(hidden)
        return scores


def transformer(steps: int) -> Task:
    text = torch.tensor([ord(c) % ALPHABET for c in topics["assignment"][: 200 * (CONTEXT + 1)]])
    windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    model = Transformer()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))  # type: ignore[no-untyped-call]  # has no annotations
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, amsgrad=True)

    def disturbed(window: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        wrong = torch.rand(CONTEXT, generator=generator) < 0.05
        return torch.where(wrong, torch.randint(1, ALPHABET, (CONTEXT,), generator=generator), window)

    def loss(state: Checkpointer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = random.sample(range(CONTEXT), 2)
        x = x.clone()
        x[:, hidden] = HIDDEN
        mean = state.extra.get("mean_loss", 4.0)
        found = cross_entropy(model(x).flatten(0, 1), y.flatten(), label_smoothing=0.1 / (1.0 + mean))
        state.extra["mean_loss"] = 0.9 * mean + 0.1 * found.item()
        return found

    return Task(
        data=Augmented(TensorDataset(windows[:, :-1], windows[:, 1:]), disturbed),
        parts={
            "model": model,
            "optimizer": optimizer,
            "schedule": torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps + 1),
            "average": average,
        },
        loss=loss,
    )


def batches(task: Task, step: int, workers: int) -> Iterator[Any]:
    """The batches after `step`, without end."""
    size = len(task.data)  # type: ignore[arg-type]  # torch's datasets need not have a length
    if not task.by_epoch:
        endless = EpochIndexSampler(size, seed=SEED, start=step * BATCH)
        return iter(DataLoader(task.data, BATCH, sampler=endless, num_workers=workers))
    an_epoch = size // BATCH
    rest = EpochIndexSampler(size, seed=SEED, start=step // an_epoch * size + step % an_epoch * BATCH, epochs=1)
    # Its own generator: each `iter` of a loader draws a number, of torch's global one if it has none.
    own = torch.Generator()
    loader = DataLoader(task.data, BATCH, sampler=rest, num_workers=workers, drop_last=True, generator=own)
    return itertools.chain.from_iterable(itertools.repeat(loader))


MODELS: Final = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def digest(value: Any) -> str:
    """SHA-256 of a state: of every bit of its tensors and numbers, whatever objects hold them."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        found.update(f"map {len(value)} ".encode())
        for key in sorted(value, key=repr):
            _feed(found, key)
            _feed(found, value[key])
    elif isinstance(value, (list, tuple)):
        found.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(found, item)
    elif type(value) is float:
        found.update(b"float " + struct.pack("<d", value))
    else:
        found.update(f"{type(value).__name__} {value!r} ".encode())


def leave_out(what: str, parts: Mapping[str, Any]) -> None:
    """Have a resume forget one part of a part list or one global generator, as if it had never been saved."""
    restore, restore_rng = torch_state.restore, torch_state.restore_rng
    if what.startswith("rng."):
        key = what.removeprefix("rng.")
        torch_state.restore_rng = lambda state: restore_rng({**state, key: torch_state.capture_rng()[key]})
    elif what in parts:
        torch_state.restore = lambda part, state: None if part is parts[what] else restore(part, state)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--leave-out", default="")
    args = parser.parse_args()

    run = trackside.init()
    deterministic(SEED)
    np.random.seed(SEED)
    random.seed(SEED)
    task = MODELS[args.model](args.steps)
    parts = task.parts
    leave_out(args.leave_out, parts)
    state = run.checkpointer(every=args.every, **parts)
    if args.leave_out == "extra":
        state.extra.clear()
    loader = batches(task, 0 if args.leave_out == "position" else state.step, args.workers)

    model, optimizer, schedule = parts["model"], parts["optimizer"], parts["schedule"]
    scaler = parts.get("scaler") or torch.amp.GradScaler("cpu", enabled=False)
    model.train()
    for _, (x, y) in zip(run.steps(args.steps), loader, strict=False):
        loss = task.loss(state, x, y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        run.log(loss=loss, lr=schedule.get_last_lr()[0])
        schedule.step()
        if "average" in parts:
            parts["average"].update_parameters(model)
        time.sleep(args.step_ms / 1000)

    final = {name: digest(torch_state.capture(part)) for name, part in parts.items()}
    final |= {f"rng.{name}": digest(value) for name, value in torch_state.capture_rng().items()}
    final["extra"] = digest(state.extra)
    aside = run.dir / f".final.{os.getpid()}"
    aside.write_text(json.dumps(final))
    aside.replace(run.dir / "final.json")
    run.summary["state"] = digest(final)


if __name__ == "__main__":
    main()
