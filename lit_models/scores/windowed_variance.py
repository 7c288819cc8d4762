"""A stopping rule without a ground truth: stop when the output has settled, before the network learns the damage.

ES-WMV: Wang et al., "Early Stopping for Deep Image Prior" (2021), algorithm 1. The variance of the last W outputs falls
while the network learns the image and rises when it begins to learn the damage. Its lowest point is the stop; it counts
as the lowest once no lower one has come for a number of steps, the patience.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from common.checks import at_least


class WindowedVariance(nn.Module):
    """For each of N images: the windowed variance of the outputs, and the average at its lowest point.

        WMV(t) = mean over pixels of  1/W Σ_w x_w² − (1/W Σ_w x_w)²        over the last W outputs x_w

    Each step costs a few passes over one image, not over W: a ring buffer holds the outputs, together with their
    running sum and norms. The sum is recomputed every W steps, so that errors do not accumulate. Everything is in
    buffers, in the checkpoint, and the host reads nothing.

    Args:
        num_images: N.
        shape: (C, H, W) of an image.
        window: W, the number of outputs.
        patience: number of steps without a lower variance after which it counts as the lowest. ``None`` never stops:
            then the newest average is kept.

    Attributes:
        kept: (N, C, H, W), the average at the stop, or the newest one as long as the window is not full.
        kept_step: (N,), its step.
        lowest: (N,), the lowest variance; infinite as long as the window is not full.

    Raises:
        ValueError: a window below 2, or a patience below 1.
    """

    not_transferred: ClassVar = (*("ring", "norms", "total", "variance", "lowest", "kept", "kept_step", "steps"),)
    """buffers that a run which starts from another's weights leaves out: all of them"""

    ring: Tensor
    norms: Tensor
    total: Tensor
    variance: Tensor
    lowest: Tensor
    kept: Tensor
    kept_step: Tensor
    steps: Tensor

    def __init__(self, num_images: int, shape: list[int], window: int = 100, patience: int | None = 1000) -> None:
        super().__init__()
        at_least(2, window=window)
        at_least(1, "or null to never stop", patience=patience)
        self.window, self.patience = window, patience
        self.register_buffer("ring", torch.zeros(window, num_images, *shape))
        self.register_buffer("norms", torch.zeros(window, num_images))
        self.register_buffer("total", torch.zeros(num_images, *shape))
        self.register_buffer("variance", torch.full((num_images,), torch.inf))
        self.register_buffer("lowest", torch.full((num_images,), torch.inf))
        self.register_buffer("kept", torch.zeros(num_images, *shape))
        self.register_buffer("kept_step", torch.zeros(num_images, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, step: int, outputs: Tensor, averages: Tensor) -> None:
        """Adds step ``step`` = 0, 1, …: the outputs (N, C, H, W) and their averages, which may be kept."""
        running = ~self.stopped()
        slot, pixels = step % self.window, outputs[0].numel()
        self.total += outputs - self.ring[slot]
        self.ring[slot] = outputs
        self.norms[slot] = outputs.square().flatten(1).sum(1)
        self.steps.fill_(step + 1)
        if slot == self.window - 1:
            self.total.copy_(self.ring.sum(0))
        if step + 1 >= self.window:
            mean_norm = (self.total / self.window).square().flatten(1).sum(1)
            self.variance.copy_((self.norms.mean(0) - mean_norm) / pixels)
        lower = running & (self.variance < self.lowest)
        self.lowest.copy_(torch.where(lower, self.variance, self.lowest))
        keep = torch.ones_like(lower) if self.patience is None else lower | self.variance.isinf()
        self.kept_step.copy_(torch.where(keep, step + 1, self.kept_step))
        self.kept.copy_(torch.where(keep.view(-1, 1, 1, 1), averages, self.kept))

    def newest(self) -> Tensor:
        """(N, C, H, W): the last output."""
        return self.ring[(int(self.steps) - 1) % self.window]

    def stopped(self) -> Tensor:
        """(N,) bool: whether the patience has run out."""
        if self.patience is None:
            return torch.zeros_like(self.lowest, dtype=torch.bool)
        return self.steps - self.kept_step >= self.patience
