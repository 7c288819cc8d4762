"""Lets several ranks, each with a part of a batch, compute what one rank with the whole batch would."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def world_size() -> int:
    """The number of processes that train together; 1 outside a distributed run."""
    return rank_and_world_size()[1]


def global_mean(values: Tensor) -> Tensor:
    """A loss whose gradient is that of the mean of ``values`` (N,) over all ranks; N may differ between ranks.

    DDP averages the ranks' gradients. The resulting mean of means is right only for equal N, so the local sum is
    divided by the *average* N instead.
    """
    if world_size() == 1:
        return values.mean()
    count = torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    dist.all_reduce(count)
    return values.sum() / (count / world_size())


def mean_over_ranks(values: Tensor) -> Tensor:
    """The average of ``values`` over the ranks, without a gradient."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values = values / world_size()
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """(B, …) of each rank → (B·ranks, …) on every rank, in the order of the global batch; without a gradient.

    :class:`datamodules.parts.loader.TensorLoader` deals a global batch out like cards: sample i is row i // ranks
    of rank i mod ranks.
    """
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)  # every rank's loss depends on these rows
        return rows_of_this_rank(total)


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """Like :func:`gather_rows`, but the gradients of all ranks' losses flow back to the rank that a row came from.

    DDP averages them over the ranks, so a loss that is a mean over this rank's rows has the gradient of the mean over
    all rows.
    """
    return rows if world_size() == 1 else _GatherWithGradient.apply(rows)


def places_of_this_rank(count: int, device: torch.device | str = "cpu") -> Tensor:
    """The positions of this rank's ``count`` rows among those of :func:`gather_rows`."""
    rank = dist.get_rank() if world_size() > 1 else 0
    return torch.arange(count, device=device) * world_size() + rank


def rows_of_this_rank(rows: Tensor) -> Tensor:
    """The reverse of :func:`gather_rows`."""
    return rows[dist.get_rank() :: world_size()] if world_size() > 1 else rows


@torch.no_grad()
def take_from_first_rank(module: torch.nn.Module) -> None:
    """Copies the parameters and buffers of the first rank to all ranks."""
    if world_size() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor, 0)
