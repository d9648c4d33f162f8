"""Data order depends on the seed and on how many samples were seen, and on nothing else."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from trackside.sdk.determinism import EpochIndexSampler, EpochSampler, permutation, position_after, sample_generator

SIZE, BATCH = 10, 4


class Noisy(Dataset[float]):
    """Samples with random augmentation of their own."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> float:
        return index + torch.rand(1, generator=sample_generator(0, 0, index)).item()


class Plain(Dataset[int]):
    """Samples that are their own indices."""

    def __getitem__(self, index: int) -> int:
        return index


def batches(start_step: int, workers: int) -> list[list[float]]:
    """Batches 0 to 8 of training, those before `start_step` left out."""
    sampler = EpochSampler(SIZE, seed=3, start=start_step * BATCH)
    loader = DataLoader(Noisy(), BATCH, sampler=sampler, num_workers=workers)
    return [batch.tolist() for batch in itertools.islice(loader, 9 - start_step)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")  # on a single core
@pytest.mark.parametrize(("start_step", "workers"), [(0, 2), (4, 0), (4, 2), (5, 0)])
def test_neither_a_cut_nor_the_number_of_workers_changes_a_batch(start_step: int, workers: int) -> None:
    assert batches(start_step, workers) == batches(0, 0)[start_step:]


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own() -> None:
    drawn = list(itertools.islice(EpochSampler(SIZE, seed=3), 3 * SIZE))
    epochs = [drawn[:SIZE], drawn[SIZE : 2 * SIZE], drawn[2 * SIZE :]]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[1] == permutation(3, 1, SIZE).tolist()
    assert epochs[0] != permutation(4, 0, SIZE).tolist()


def test_one_epoch_at_a_time_goes_on_where_the_position_is() -> None:
    sampler = EpochSampler(SIZE, seed=3, epochs=1)
    sampler.seek(SIZE + 7)
    assert list(sampler) == permutation(3, 1, SIZE).tolist()[7:]
    assert list(sampler) == permutation(3, 2, SIZE).tolist()
    assert sampler.epoch == 3


def epoch_by_epoch(start_step: int, drop_last: bool) -> list[list[int]]:
    """Batches up to the 9th of training, those before `start_step` left out, from a loader iterated for each epoch."""
    start = position_after(start_step, size=SIZE, batch=BATCH, drop_last=drop_last)
    sampler = EpochSampler(SIZE, seed=3, start=start, epochs=1)
    loader = DataLoader(Plain(), BATCH, sampler=sampler, drop_last=drop_last, generator=torch.Generator())
    found: list[list[int]] = []
    while len(found) < 9 - start_step:
        found += [batch.tolist() for batch in loader]
    return found[: 9 - start_step]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start_step", range(1, 9))
def test_training_epoch_by_epoch_goes_on_with_the_batch_that_comes_next(start_step: int, drop_last: bool) -> None:
    assert epoch_by_epoch(start_step, drop_last) == epoch_by_epoch(0, drop_last)[start_step:]


def test_epochs_without_a_whole_batch_have_no_position() -> None:
    assert position_after(2, size=3, batch=4) == 6
    with pytest.raises(ValueError, match="batch is 4 and size 3"):
        position_after(2, size=3, batch=4, drop_last=True)


def test_another_default_device_changes_no_order() -> None:
    torch.set_default_device("meta")
    try:
        assert list(itertools.islice(EpochSampler(SIZE, seed=3), SIZE)) == permutation(3, 0, SIZE).tolist()
        assert permutation(3, 0, SIZE).device.type == "cpu"
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("start", [0, 7, SIZE, 2 * SIZE + 1])
def test_each_index_comes_with_the_epoch_that_it_is_of(start: int) -> None:
    pairs = list(itertools.islice(EpochIndexSampler(SIZE, seed=3, start=start), 2 * SIZE))
    order = [(epoch, index) for epoch in range(5) for index in permutation(3, epoch, SIZE).tolist()]
    assert pairs == order[start : start + 2 * SIZE]


def test_the_order_is_the_same_in_every_release() -> None:
    # Checkpoints hold no order: a change here would silently give running jobs other data after an upgrade.
    assert permutation(0, 0, 8).tolist() == [1, 4, 2, 7, 6, 5, 3, 0]
    assert torch.randint(1000, (3,), generator=sample_generator(1, 2, 3)).tolist() == [307, 938, 150]
