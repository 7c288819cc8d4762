"""Total variation: the prior that a network takes the place of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def gradient(x: Tensor) -> Tensor:
    """(B, C, H, W) → (2, B, C, H, W): differences to the pixel below and to the one at the right, 0 at the border."""
    return torch.stack([F.pad(x.diff(dim=2), (0, 0, 0, 1)), F.pad(x.diff(dim=3), (0, 1))])


def divergence(p: Tensor) -> Tensor:
    """(2, B, C, H, W) → (B, C, H, W): minus the adjoint of :func:`gradient`."""
    down, right = p[0, :, :, :-1], p[1, :, :, :, :-1]
    return F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0)) + F.pad(right, (0, 1)) - F.pad(right, (1, 0))


def total_variation(x: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(B,): the mean over pixels of √(|∇x|² + ε) of images (B, C, H, W), with the length over all channels.

    ε keeps the gradient finite where the image is flat.
    """
    return (gradient(x).square().sum((0, 2)) + epsilon).sqrt().flatten(1).mean(1)


def operator_norm(measure: Map, adjoint: Map, like: Tensor, steps: int = 30) -> Tensor:
    """(B,): an upper estimate of ‖A‖² of each image's A, by the power method from an image of noise."""
    x = torch.rand(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
    norm = x.new_ones(len(x))
    for _ in range(steps):
        x = adjoint(measure(x))
        norm = x.flatten(1).norm(dim=1)
        x = x / norm.clamp_min(1e-12).view(-1, 1, 1, 1)
    return 1.05 * norm  # it comes from below


@torch.no_grad()
def tv_restore(degraded: Tensor, measure: Map, adjoint: Map, radius: Tensor, start: Tensor, steps: int = 500) -> Tensor:
    """The image of least total variation that explains the measurements as well as the truth would.

        min TV(x)   subject to   ‖A x − y‖ ≤ r   and   0 ≤ x ≤ 1

    With r = σ √m, the noise's expected length over m measurements, this chooses the prior's weight by the discrepancy
    principle (Morozov 1966): the larger the better, as long as the residual is no larger than the noise. Without noise
    the measurements are met exactly. Solved by the primal-dual method of Chambolle & Pock (2011), algorithm 1 with
    θ = 1.

    Args:
        degraded: y (B, C, h, w), 0 where there is no measurement.
        measure, adjoint: A, with the mask in it, and Aᵀ.
        radius: r (B,).
        start: (B, C, H, W), where the iteration starts.
    """
    radius = radius.view(-1, 1, 1, 1)
    norm = operator_norm(measure, adjoint, start).clamp_min(1e-12).view(-1, 1, 1, 1)
    # The steps have τ (s ‖∇‖² + s′ ‖A‖²) = 1 with ‖∇‖² ≤ 8, half for each of the two.
    tau = 0.02
    step_tv, step_fit = 1 / (2 * 8 * tau), 1 / (2 * tau * norm)
    x = x_bar = start
    p, q = torch.zeros_like(gradient(x)), torch.zeros_like(degraded)
    for _ in range(steps):
        p = p + step_tv * gradient(x_bar)
        p = p / p.square().sum((0, 2), keepdim=True).sqrt().clamp_min(1)
        q = q + step_fit * (measure(x_bar) - degraded)
        length = q.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        q = q * (1 - step_fit * radius / length).clamp_min(0)
        new = (x + tau * (divergence(p) - adjoint(q))).clamp(0, 1)
        x, x_bar = new, 2 * new - x
    return x
