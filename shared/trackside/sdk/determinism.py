"""Randomness as a pure function of where training is: data order that no cut and no number of workers changes.

A permutation depends on (seed, epoch) alone and a sample's own randomness on (seed, epoch, index), so that nothing of
it needs saving: the completed steps say it all. Identity is promised for one device type, torch version and thread
count, not across them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def permutation(seed: int, epoch: int, n: int) -> torch.Tensor:
    """The order of `n` samples in an epoch: [n] int64."""
    # On the CPU whatever the script's default device is, as the generator.
    return torch.randperm(n, generator=_generator("permutation", seed, epoch), device="cpu")


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A fresh CPU generator for one sample's augmentation, or one step's draws; the same in every process."""
    return _generator("sample", seed, epoch, index)


def _generator(*facts: str | int) -> torch.Generator:
    # Hashed, because generators seeded with neighbouring numbers start out alike.
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def position_after(step: int, *, size: int, batch: int, drop_last: bool = False) -> int:
    """The position after `step` steps where a loader is iterated anew for each epoch, with `epochs=1`.

    An epoch of `size` samples then ends with a batch of what is left, or with `drop_last` without it.
    """
    steps = size // batch if drop_last else -(-size // batch)
    if steps == 0:
        raise ValueError(f"batch is {batch} and size {size}: with drop_last an epoch has no batch, make it smaller")
    epoch, step_of_epoch = divmod(step, steps)
    return epoch * size + step_of_epoch * batch


class EpochSampler(Sampler[int]):
    """Yields sample indices, epoch after epoch, from a position that can be set.

    The position counts samples since the start of training. Without `epochs` it never ends: batches run on across
    epochs, one `zip(run.steps(total), loader)` is the whole training, and a resumed script passes
    `start=state.step * batch_size`. With `epochs=1` each `iter` gives the rest of one epoch, whose last batch may be
    short or dropped, so a resumed script passes `start=position_after(state.step, size=size, batch=batch_size)`; the
    loader then needs a generator of its own, since each `iter` of it draws a number, else of torch's global one, and a
    resumed run iterates at other moments.
    """

    def __init__(self, size: int, *, seed: int, start: int = 0, epochs: int | None = None) -> None:
        if size < 1:
            raise ValueError(f"size is {size}: there must be a sample to draw")
        self._size, self._seed, self._epochs = size, seed, epochs
        self.position = start  # samples before the next one that is yielded

    @property
    def epoch(self) -> int:
        """The epoch of the next sample, from 0."""
        return self.position // self._size

    def seek(self, position: int) -> None:
        """Go on after `position` samples; holds for the next `iter`."""
        self.position = position

    def __iter__(self) -> Iterator[int]:
        last = None if self._epochs is None else self.epoch + self._epochs
        while last is None or self.epoch < last:
            order = permutation(self._seed, self.epoch, self._size).tolist()
            for index in order[self.position % self._size :]:
                self.position += 1
                yield index


class EpochIndexSampler(Sampler[tuple[int, int]]):
    """As `EpochSampler`, but yields (epoch, index), for a dataset that augments its samples.

    Its `__getitem__` gets the pair and makes the sample's `sample_generator(seed, epoch, index)`. The loader's own
    processes draw from that and from nothing else, and so a resume needs none of their random state.
    """

    def __init__(self, size: int, *, seed: int, start: int = 0, epochs: int | None = None) -> None:
        self._inner = EpochSampler(size, seed=seed, start=start, epochs=epochs)
        self._size = size

    @property
    def epoch(self) -> int:
        """The epoch of the next sample, from 0."""
        return self._inner.epoch

    def seek(self, position: int) -> None:
        """Go on after `position` samples; holds for the next `iter`."""
        self._inner.seek(position)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for index in self._inner:
            yield (self._inner.position - 1) // self._size, index


def deterministic(seed: int | None = None) -> None:
    """Make torch repeatable: deterministic kernels only, no TF32, no benchmarking; seeds it when `seed` is given.

    Call it before the first use of a GPU. Operations without a deterministic kernel raise from then on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if seed is not None:
        torch.manual_seed(seed)
