"""Means over the samples of all ranks, however many each of them has."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed import global_mean, world_size
from tests.two_ranks import on_two_ranks

SPLITS = {"equal": [[0, 2, 4, 6], [1, 3, 5, 7]], "unequal": [[0, 1, 2, 3, 4], [5, 6, 7]]}
"""which of eight samples each of two ranks has"""


def test_in_one_process_the_global_mean_is_the_mean() -> None:
    values = torch.randn(7, requires_grad=True)
    assert world_size() == 1
    assert float(global_mean(values.detach())) == pytest.approx(float(values.detach().mean()))
    global_mean(values).backward()
    torch.testing.assert_close(values.grad, torch.full((7,), 1 / 7))


def weighted(weight: Tensor) -> Tensor:
    """A loss (8,) of each sample."""
    return (weight * torch.arange(1.0, 9.0) - 3).square() * torch.arange(8)


def gradient_on_a_rank(members: list[list[int]]) -> Tensor | None:
    weight = torch.tensor(0.7, requires_grad=True)
    global_mean(weighted(weight)[members[dist.get_rank()]]).backward()
    return weight.grad


@pytest.mark.parametrize("split", SPLITS)
def test_gradients_of_the_global_mean_on_two_ranks_average_to_those_of_the_mean_over_all(split: str) -> None:
    weight = torch.tensor(0.7, requires_grad=True)
    weighted(weight).mean().backward()
    average = sum(on_two_ranks(gradient_on_a_rank, SPLITS[split])) / 2
    torch.testing.assert_close(average, weight.grad)
