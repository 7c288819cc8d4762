"""Gaussian codes: their KL divergence from the prior, and paths between them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.checks import at_least


def as_codes(z: object, size: int, like: Tensor) -> Tensor:
    """Codes (B, size), given as a tensor or an array of numbers, with the device and the precision of a weight.

    Raises:
        TypeError, ValueError: they are something else, or there are none.
    """
    codes = torch.from_numpy(z) if isinstance(z, np.ndarray) and z.dtype.kind in "iuf" else z
    if not isinstance(codes, Tensor):
        raise TypeError(f"z of type {type(z).__name__}: expected codes (B, {size}), a tensor or an array of numbers")
    if codes.dim() != 2 or codes.shape[1] != size or not len(codes):
        raise ValueError(f"z of shape {tuple(codes.shape)}: expected codes (B, {size})")
    return codes.to(like.device, like.dtype)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) ‖ N(0, 1)) of each element, in nats: Kingma & Welling 2014, appendix B."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """(steps, D): from code ``a`` (D,) to ``b`` along the great circle, including both, with evenly changing length.

    A straight line between two draws from a unit Gaussian passes through codes that are shorter than typical draws;
    this path does not (Shoemake 1985; White 2016).
    """
    at_least(2, steps=steps)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device)[:, None]
    length_a, length_b = a.norm().clamp_min(1e-12), b.norm().clamp_min(1e-12)
    angle = torch.arccos((a / length_a @ (b / length_b)).clamp(-1, 1))
    if angle.sin() < 1e-4:  # the same direction, or opposite ones, between which there is no shortest way
        return torch.lerp(a, b, t)
    direction = (((1 - t) * angle).sin() * a / length_a + (t * angle).sin() * b / length_b) / angle.sin()
    output: Tensor = direction * torch.lerp(length_a, length_b, t)
    return output
