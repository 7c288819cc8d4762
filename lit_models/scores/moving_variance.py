"""A stopping rule without a ground truth: stop when the output has settled, before the network learns the damage.

After ES-WMV of Wang et al., "Early Stopping for Deep Image Prior" (2021), algorithm 1. The variance of the last outputs
falls while the network learns the image and rises when it begins to learn the damage. Its lowest point is the stop; it
counts as the lowest once no lower one has come for a number of steps, the patience.

There the variance is that of a window of outputs. Here the window fades: mean and variance are under the same weights,
so that the restored image is the very mean around which the outputs vary least. With a window as long as the memory of
the average, the lowest point comes some hundred steps before the average has left the blurred beginning behind.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.checks import at_least, within

SIGNIFICANT = 0.05
"""share by which a variance must be below the lowest to take its place

Where the damage is learned as slowly as the image has settled, the variance hardly changes for a thousand steps, in
which the mean takes up more and more of the damage; by chance, its very lowest value may be the last one.
"""


class MovingVariance(nn.Module):
    """For each of N images: mean and variance of its outputs under exponential weights, and the mean at the stop.

        m_t = Σ w_s x_s      v_t = mean over pixels of  Σ w_s (x_s − m_t)² / (1 − Σ w_s²)      w_s ∝ β^(t − s)

    with weights that sum to 1. The divisor makes up for the degree of freedom that the mean takes, which is more of a
    few outputs than of many. Both are updated in each step (West 1979, with weights that fade), which loses no digits
    however small the variance, and needs no more memory than an image. Everything is in buffers, in the checkpoint, and
    the host reads nothing.

    Args:
        num_images: N.
        shape: (C, H, W) of an image.
        memory: β, the weight of the past; 0 means that the newest output is the mean.
        patience: number of steps without a variance that is lower by :data:`SIGNIFICANT`, after which it counts as the
            lowest. ``None`` never stops: then the newest mean is kept.

    Attributes:
        mean: (N, C, H, W).
        newest: (N, C, H, W), the last output.
        variance: (N,); infinite in the first 1 / (1 − β) steps, in which there is not much to compare.
        kept: (N, C, H, W), the mean at the stop, or the newest one as long as the variance is infinite.
        kept_step: (N,), its step, from 1 on.
        lowest: (N,), the variance at that step.

    Raises:
        ValueError: a memory outside [0, 1), or 0 with a patience; a patience below 1.
    """

    not_transferred: ClassVar = (*("mean", "newest", "spread", "variance", "lowest", "kept", "kept_step", "steps"),)
    """buffers that a run which starts from another's weights leaves out: all of them"""

    mean: Tensor
    newest: Tensor
    spread: Tensor
    variance: Tensor
    lowest: Tensor
    kept: Tensor
    kept_step: Tensor
    steps: Tensor

    def __init__(self, num_images: int, shape: list[int], memory: float = 0.99, patience: int | None = 1000) -> None:
        super().__init__()
        within("[0, 1)", averaging=memory)
        at_least(1, "or null to never stop", patience=patience)
        if patience is not None and memory == 0:
            raise ValueError("averaging=0: expected more, or patience null, since one output has no variance")
        self.memory, self.patience = memory, patience
        self.register_buffer("mean", torch.zeros(num_images, *shape))
        self.register_buffer("newest", torch.zeros(num_images, *shape))
        self.register_buffer("spread", torch.zeros(num_images))
        self.register_buffer("variance", torch.full((num_images,), torch.inf))
        self.register_buffer("lowest", torch.full((num_images,), torch.inf))
        self.register_buffer("kept", torch.zeros(num_images, *shape))
        self.register_buffer("kept_step", torch.zeros(num_images, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, step: int, outputs: Tensor) -> None:
        """Adds step ``step`` = 0, 1, …: the outputs (N, C, H, W)."""
        running = ~self.stopped()
        share = (1 - self.memory) / (1 - self.memory ** (step + 1))  # of the newest among all weights; 1 at first
        change = outputs - self.mean
        self.mean.add_(change, alpha=share)
        self.spread.copy_((1 - share) * (self.spread + share * change.square().flatten(1).mean(1)))
        self.newest.copy_(outputs)
        self.steps.fill_(step + 1)
        if step + 1 >= round(1 / (1 - self.memory)):
            past = self.memory ** (step + 1)
            squares = (1 - self.memory) / (1 + self.memory) * (1 + past) / (1 - past)  # Σ w_s²
            self.variance.copy_(self.spread / (1 - squares))
        lower = running & (self.variance < (1 - SIGNIFICANT) * self.lowest)
        self.lowest.copy_(torch.where(lower, self.variance, self.lowest))
        keep = torch.ones_like(lower) if self.patience is None else lower | self.variance.isinf()
        self.kept_step.copy_(torch.where(keep, step + 1, self.kept_step))
        self.kept.copy_(torch.where(keep.view(-1, 1, 1, 1), self.mean, self.kept))

    def stopped(self) -> Tensor:
        """(N,) bool: whether the patience has run out."""
        if self.patience is None:
            return torch.zeros_like(self.lowest, dtype=torch.bool)
        return self.steps - self.kept_step >= self.patience


def from_windowed(state: dict[str, Any]) -> None:
    """Brings the state of a model with the windowed variance of earlier versions into the form of this one, in place.

    What it had kept stays; that its variance goes on as this one's is only an approximation.
    """
    if "stop.ring" not in state:
        return
    ring, steps = state.pop("stop.ring"), int(state["stop.steps"])
    del state["stop.norms"], state["stop.total"]
    state["stop.newest"] = ring[(steps - 1) % len(ring)]
    state["stop.mean"] = state.pop("average")
    state["stop.spread"] = state["stop.variance"].nan_to_num(posinf=0.0)
