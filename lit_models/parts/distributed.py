"""What makes several ranks with a part of a batch each compute what one rank with all of it would."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of processes that train together; 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_mean(values: Tensor) -> Tensor:
    """The mean of ``values`` (N,) over the samples of all ranks, as far as gradients go; N may differ between ranks.

    DDP averages the ranks' gradients. The mean of means that this gives is right only for equal N, so the local sum is
    divided by the *average* N instead.
    """
    count = torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    if world_size() > 1:
        dist.all_reduce(count)
        count = count / world_size()
    return values.sum() / count


def mean_over_ranks(values: Tensor) -> Tensor:
    """The ranks' average of ``values``, without a gradient."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values = values / world_size()
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """(B, …) of each rank → (B·ranks, …) on every rank, in the order of the global batch; without a gradient.

    :class:`datamodules.loader.TensorLoader` deals a global batch out like cards: sample i is row i // ranks of rank
    i mod ranks.
    """
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def rows_of_this_rank(rows: Tensor) -> Tensor:
    """The reverse of :func:`gather_rows`."""
    return rows[dist.get_rank() :: world_size()] if world_size() > 1 else rows


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over the samples of all ranks, on any device.

    In one process it *is* ``nn.BatchNorm2d``. Across ranks it sums the count, Σx and then Σ(x − mean)² with their
    gradients (``nn.SyncBatchNorm`` does so on GPUs only; Lightning's ``sync_batchnorm`` replaces this class by it
    there).
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and world_size() > 1):
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        x = input.to(torch.promote_types(input.dtype, torch.float))
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = all_reduce(torch.cat([x.sum((0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centered = x - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / total  # biased, as batch norm normalizes
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (total / (total - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
            return (centered * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)
        return (centered * scale[:, None, None]).to(input.dtype)
