"""Batch normalization with the statistics of the global batch, or of groups of it, for any number of ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.distributed import mean_over_ranks, world_size


class _Global(_BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and world_size() > 1):
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        x = input.to(torch.promote_types(input.dtype, torch.float))
        channels, others = x.shape[1], [0, *range(2, x.dim())]
        shape = [channels] + [1] * (x.dim() - 2)
        count = x.new_tensor([x.numel() / channels])
        sums = all_reduce(torch.cat([x.sum(others), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centered = x - mean.view(shape)
        variance = all_reduce(centered.square().sum(others)) / total  # biased, as batch norm normalizes
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
            output: Tensor = (centered * scale.view(shape) + self.bias.view(shape)).to(input.dtype)
            return output
        output = (centered * scale.view(shape)).to(input.dtype)
        return output


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    """:class:`GlobalBatchNorm2d` of vectors (N, C)."""


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    """Batch normalization over the samples of all ranks, on any device.

    In one process it *is* torch's. Across ranks it sums the count, Σx and then Σ(x − mean)² with their gradients
    (``nn.SyncBatchNorm`` does so only on GPUs; there Lightning's ``sync_batchnorm`` replaces this class with it).
    """


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization of each of ``splits`` groups of the global batch separately, as that many GPUs would do.

    Sample i of the global batch is in group i mod ``splits``. A rank has every ranks-th sample, so if the number of
    ranks divides ``splits``, each rank has whole groups, and any number of ranks computes the same result. The running
    statistics are updated with the mean over the groups.

    He et al. 2020, section 3.3, need this for MoCo: see :class:`lit_models.moco.MoCo`.
    """

    splits: int = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        groups, left_over = divmod(self.splits, world_size())
        if left_over or len(input) % groups:
            raise ValueError(
                f"bn_splits={self.splits} with {len(input)} samples on each of {world_size()} ranks: expected "
                "groups of equal size"
            )
        # Group by group beside each other in the channels: sample a·groups + g is row a of group g.
        rows = input.reshape(len(input) // groups, groups * input.shape[1], *input.shape[2:])
        weight, bias = (None if p is None else p.repeat(groups) for p in (self.weight, self.bias))
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return F.batch_norm(rows, None, None, weight, bias, True, 0.0, self.eps).reshape(input.shape)
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means, variances = self.running_mean.repeat(groups), self.running_var.repeat(groups)
        output = F.batch_norm(rows, means, variances, weight, bias, True, momentum, self.eps)
        for statistic, of_groups in ((self.running_mean, means), (self.running_var, variances)):
            statistic.copy_(mean_over_ranks(of_groups.view(groups, -1).mean(0)))
        output = output.reshape(input.shape)
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        return output.contiguous(memory_format=torch.channels_last) if channels_last else output


def split_batch_norm(network: nn.Module, splits: int) -> None:
    """Turns every :class:`GlobalBatchNorm2d` of a network into a :class:`SplitBatchNorm2d`.

    Raises:
        ValueError: the network has another kind of batch normalization, which would not be split.
    """
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _Global):
            raise ValueError(
                f"bn_splits={splits}: {name} of this encoder is a {type(module).__name__}, which cannot be split; "
                "expected an encoder with plain batch normalization, or bn_splits=1"
            )
        if isinstance(module, GlobalBatchNorm2d):
            module.__class__ = SplitBatchNorm2d  # type: ignore[assignment]
            module.splits = splits  # type: ignore[assignment]


def whole_batch_norm(network: nn.Module) -> None:
    """The reverse of :func:`split_batch_norm`."""
    for module in network.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.__class__ = GlobalBatchNorm2d  # type: ignore[assignment]
