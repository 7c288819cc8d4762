"""Total variation: the prior that the network replaces."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]

RADII = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""distances of an image from noisy measurements, relative to the noise: the choices of :func:`tv_restore_noisy`"""


def gradient(x: Tensor) -> Tensor:
    """(B, C, H, W) → (2, B, C, H, W): differences to the pixel below and to the right, 0 at the border."""
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
    """(B,): an upper estimate of ‖A‖² for each image's A, by the power method, starting from noise."""
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

    Without noise r is 0, and the measurements are met exactly; with noise :func:`tv_restore_noisy` chooses r. It is
    solved by the primal-dual method of Chambolle & Pock (2011), algorithm 1 with θ = 1.

    Args:
        degraded: y (B, C, h, w), 0 where there is no measurement.
        measure, adjoint: A, including the mask, and Aᵀ.
        radius: r (B,).
        start: (B, C, H, W), the start of the iteration.
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


@torch.no_grad()
def tv_restore_noisy(
    degraded: Tensor, mask: Tensor, measure: Map, adjoint: Map, noise: Tensor, start: Tensor, steps: int = 300
) -> Tensor:
    """:func:`tv_restore` at the radius of least estimated risk, which uses the noise deviation but not the truth.

    The discrepancy principle (Morozov 1966), r = σ √m, says that the residual of m measurements should be as long as
    the noise. It smooths too much, since the residual of the best image is shorter: that image has fitted some of the
    noise as well. Stein's unbiased estimate (1981) of ‖A x − A x_true‖² accounts for this, with the divergence from one
    more solution for measurements moved along a random b (Ramani, Blu & Unser 2008):

        SURE(r) = ‖A x_r(y) − y‖² − m σ² + 2 σ² bᵀ (A x_r(y + ε b) − A x_r(y)) / ε        b ~ N(0, 1)

    The minimum is taken over :data:`RADII` times the principle's radius, which include that radius itself. Stein's
    estimate assumes Gaussian noise; for values clipped to 0..1, σ should be the deviation that remains after clipping.

    Args:
        degraded: y (B, C, h, w), 0 where there is no measurement.
        mask: (B, 1, h, w), 1 where there is a measurement; (B, 1, 1, 1) if there is one everywhere.
        measure, adjoint: A, including the mask, and Aᵀ.
        noise: σ (B,), in units of the brightness 0..1.
        start: (B, C, H, W), the start of the iteration.
    """
    known = mask.expand_as(degraded).flatten(1).sum(1)
    length = noise * known.sqrt()
    if not bool(noise.any()):
        return tv_restore(degraded, measure, adjoint, length, start, steps)
    # The same b for each image, so that what is chosen for one depends on no other.
    b = torch.randn(degraded[:1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(degraded)
    b = mask * b
    move = 0.1 * noise.view(-1, 1, 1, 1)  # ε
    best, least = start, torch.full_like(noise, torch.inf)
    for share in RADII:
        x = tv_restore(degraded, measure, adjoint, share * length, start, steps)
        moved = tv_restore(degraded + move * b, measure, adjoint, share * length, start, steps)
        fit = (measure(x) - degraded).square().flatten(1).sum(1)
        divergence_times_noise = (b * (measure(moved) - measure(x))).flatten(1).sum(1) * noise / 0.1  # σ² bᵀ(…)/ε
        risk = fit - length.square() + 2 * divergence_times_noise
        best = torch.where((risk < least).view(-1, 1, 1, 1), x, best)
        least = torch.minimum(risk, least)
    return best
