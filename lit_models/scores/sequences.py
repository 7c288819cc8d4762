"""Scores of reconstructed sequences, and what else a sequence can be reconstructed from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from lit_models.parts.sequences import step_mask


def squared_error(output: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """(B,): the mean over a sequence's points and their D numbers of (x̂ − x)²."""
    each = (output - values).square().mean(2) * step_mask(lengths, values.shape[1])
    return each.sum(1) / lengths


def resample(values: Tensor, lengths: Tensor, new_lengths: Tensor) -> Tensor:
    """Resamples sequences (B, T, D) to another number of points: linear interpolation, evenly from first to last.

    Args:
        lengths, new_lengths: (B,) number of points before and after; a single new point is the middle.

    Returns:
        (B, max(new_lengths), D), 0 after the end.
    """
    steps = int(new_lengths.max())
    place = torch.arange(steps, dtype=values.dtype, device=values.device)
    share = place / (new_lengths[:, None] - 1).clamp_min(1).to(values.dtype)
    share = torch.where(new_lengths[:, None] == 1, 0.5, share)
    where = (share * (lengths[:, None] - 1)).clamp_max(values.shape[1] - 1)
    before = where.floor().long()
    after = torch.minimum(before + 1, lengths[:, None] - 1).clamp_min(0)
    row = torch.arange(len(values), device=values.device)[:, None]
    points = torch.lerp(values[row, before], values[row, after], (where - before)[:, :, None])
    return points * step_mask(new_lengths, steps)[:, :, None]


def from_components(values: Tensor, lengths: Tensor, mean: Tensor, components: Tensor) -> Tensor:
    """Sequences (B, T, D) reconstructed from principal components (K, N·D) of sequences resampled to N points.

    Args:
        mean: (N·D,) of the resampled sequences.
    """
    dim = values.shape[2]
    same = torch.full_like(lengths, len(mean) // dim)
    flat = resample(values, lengths, same).flatten(1) - mean
    restored = mean + flat @ components.T @ components
    return _with_steps(resample(restored.unflatten(1, (-1, dim)), same, lengths), values)


def from_points(values: Tensor, lengths: Tensor, points: int) -> Tensor:
    """Sequences (B, T, D) reconstructed from a number of their points, by linear interpolation."""
    few = torch.full_like(lengths, points).minimum(lengths)  # a shorter sequence is kept as it is
    return _with_steps(resample(resample(values, lengths, few), few, lengths), values)


def _with_steps(values: Tensor, like: Tensor) -> Tensor:
    return F.pad(values, (0, 0, 0, like.shape[1] - values.shape[1]))


class MeanOfLength(Metric):
    """The mean of a score over the sequences of each length.

    Args:
        longest: lengths go from 0 to this; longer ones count as this.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, longest: int) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(longest + 1, dtype=torch.double), dist_reduce_fx="sum")

    def update(self, scores: Tensor, lengths: Tensor) -> None:
        """Adds the scores (B,) of sequences with these lengths (B,)."""
        bins = lengths.clamp_max(len(self.total) - 1)
        self.total = self.total.index_add(0, bins, scores.to(self.total.dtype))
        self.count = self.count.index_add(0, bins, torch.ones_like(scores, dtype=self.count.dtype))

    def compute(self) -> Tensor:
        """(longest + 1,): NaN if there is no sequence of that length."""
        return self.total / self.count
