"""A copy of training state has the numbers, the layout and the sharing of what it was taken of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from trackside.sdk import torch_state


@pytest.fixture
def meta_by_default() -> Iterator[None]:
    """Tensors that are made without a device hold no numbers."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.rand(3, 4).t(),
        torch.rand(5, 3, 2, 4).permute(2, 0, 3, 1),
        torch.rand(1).expand(5),
        torch.rand(0, 3),
    ],
)
def test_a_copy_has_the_strides_that_a_clone_has(tensor: torch.Tensor) -> None:
    taken = torch_state.snapshot({"a": tensor})["a"]
    assert torch.equal(taken, tensor)
    assert taken.stride() == tensor.clone().stride()


def test_a_copy_of_a_tensor_without_numbers_has_none() -> None:
    assert torch_state.snapshot({"a": torch.empty(2, device="meta")})["a"].is_meta


def test_a_parameter_is_copied_as_a_tensor_without_a_graph() -> None:
    taken = torch_state.snapshot({"a": torch.nn.Parameter(torch.ones(2))})["a"]
    assert type(taken) is torch.Tensor
    assert not taken.requires_grad


def test_views_that_negate_or_conjugate_are_copied_as_what_they_show() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    imaginary = numbers.imag
    state = {"a": numbers, "b": numbers.conj(), "c": imaginary, "d": numbers.conj().imag}
    taken = torch_state.snapshot(state)
    assert {name: tensor.tolist() for name, tensor in taken.items()} == {
        "a": [1 + 2j, 3 - 4j],
        "b": [1 - 2j, 3 + 4j],
        "c": [2.0, -4.0],
        "d": [-2.0, 4.0],
    }


@pytest.mark.usefixtures("meta_by_default")
def test_another_default_device_changes_neither_copies_nor_random_states() -> None:
    taken = torch_state.snapshot({"a": torch.ones(2, device="cpu")})
    assert taken["a"].tolist() == [1.0, 1.0]
    state = torch_state.capture_rng()
    drawn = random.random(), float(np.random.rand()), torch.rand(1, device="cpu").item()
    assert torch_state.restore_rng(state) == []
    assert (random.random(), float(np.random.rand()), torch.rand(1, device="cpu").item()) == drawn
