"""A pen's next move as a mixture of bivariate Gaussians and three pen states (Graves 2013; Ha & Eck 2017)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_models.parts.sampling import draw

PEN_STATES = 3
LOG_SIGMA = (-4.0, 7.0)
"""bounds of ln σ, for offsets in units of their own deviation. The paper has none. But exactly horizontal lines have
Δy = 0, where a density has no bound: they would dominate training, with gradients as steep as 1/σ."""
MAX_TILT = 6.0
"""bound of artanh ρ, where 1 − ρ² is 2.5e-5"""


class Mixture(NamedTuple):
    """p(Δx, Δy) = Σ_j π_j N(Δx, Δy; μ_j, σ_j, ρ_j) and p(pen), at each of some steps (…), with M components."""

    log_weights: Tensor
    """(…, M): ln π"""
    means: Tensor
    """(…, M, 2): μ of Δx and Δy"""
    log_sigmas: Tensor
    """(…, M, 2): ln σ"""
    tilts: Tensor
    """(…, M): r, with the correlation ρ = tanh r"""
    log_pen: Tensor
    """(…, 3): ln q of: the pen stays down, is lifted, the drawing has ended"""


def mixture_size(components: int) -> int:
    """The number of network outputs for a :class:`Mixture`: π̂, μ (2), σ̂ (2), ρ̂ of each component, and the pen."""
    return 6 * components + PEN_STATES


def to_mixture(outputs: Tensor) -> Mixture:
    """A network's outputs (…, 6M + 3) as a distribution: π = softmax(π̂), σ = exp(σ̂), ρ = tanh(ρ̂), q = softmax(q̂).

    It uses at least single precision, whatever precision the network runs in.
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    components = (outputs.shape[-1] - PEN_STATES) // 6
    assert mixture_size(components) == outputs.shape[-1]
    weights, means, sigmas, tilts, pen = outputs.split(
        [components, 2 * components, 2 * components, components, PEN_STATES], -1
    )
    return Mixture(
        log_weights=weights.log_softmax(-1),
        means=means.unflatten(-1, (components, 2)),
        log_sigmas=sigmas.clamp(*LOG_SIGMA).unflatten(-1, (components, 2)),
        tilts=tilts.clamp(-MAX_TILT, MAX_TILT),
        log_pen=pen.log_softmax(-1),
    )


def log_density(mixture: Mixture, offsets: Tensor) -> Tensor:
    """ln p(Δx, Δy) of offsets (…, 2) → (…), in nats.

    With u, v the offsets in units of σ from μ and ρ = tanh r, the quadratic form (u² + v² − 2ρuv) / (1 − ρ²) is
    u² + (v cosh r − u sinh r)², which does not cancel and never divides by 1 − ρ² as ρ goes to ±1.
    """
    u, v = ((offsets[..., None, :] - mixture.means) * torch.exp(-mixture.log_sigmas)).unbind(-1)
    r = mixture.tilts
    log_cosh = r.abs() + F.softplus(-2 * r.abs()) - math.log(2)  # −½ ln(1 − ρ²)
    form = u.square() + (v * r.cosh() - u * r.sinh()).square()
    log_normal = log_cosh - math.log(2 * math.pi) - mixture.log_sigmas.sum(-1) - 0.5 * form
    return torch.logsumexp(mixture.log_weights + log_normal, -1)


def draw_move(mixture: Mixture, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """(B, 5): a move (Δx, Δy, p1, p2, p3) from each of B mixtures, at a temperature τ.

    As in the paper, π̂ and the pen's q̂ are divided by τ, and σ² is multiplied by it. At 0 the move is the mean of the
    likeliest component with the likeliest pen state.
    """
    component = draw(mixture.log_weights, temperature, generator=generator)[:, None]
    pen = draw(mixture.log_pen, temperature, generator=generator)
    pair = component[..., None].expand(-1, -1, 2)
    mean, sigma = mixture.means.gather(1, pair)[:, 0], mixture.log_sigmas.gather(1, pair)[:, 0].exp()
    tilt = mixture.tilts.gather(1, component)[:, 0]
    noise = torch.empty_like(mean).normal_(generator=generator)
    correlated = tilt.tanh() * noise[:, 0] + noise[:, 1] / tilt.cosh()  # 1 / cosh r is √(1 − ρ²)
    offset = mean + math.sqrt(temperature) * sigma * torch.stack([noise[:, 0], correlated], 1)
    return torch.cat([offset, F.one_hot(pen, PEN_STATES).to(offset.dtype)], 1)
