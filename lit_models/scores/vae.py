"""How much a VAE's code holds of an image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_models.parts.latent import gaussian_kl

ACTIVE = 0.01
"""a dimension is active if the variance of its posterior mean over images exceeds this (Burda et al. 2016)"""

MOST = 2000
"""number of images whose posteriors are compared with each other"""


class Found(NamedTuple):
    kl: Tensor
    """(D,) mean KL of each dimension, nats"""
    active_units: Tensor
    mutual_information: Tensor
    """I(x; z) in nats, at most log N for N images"""


class PosteriorScores(Metric):
    """From the posteriors of all images: KL of each dimension, active units, mutual information of image and code.

    I(x; z) = E_x KL(q(z|x) ‖ p(z)) − KL(q(z) ‖ p(z)) = E[log q(z|x) − log q(z)] with the aggregate q(z) = E_x q(z|x)
    (Hoffman & Johnson 2016), estimated over the images at hand.
    """

    full_state_update = False
    mean: list[Tensor]
    log_var: list[Tensor]
    z: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "log_var", "z"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, mean: Tensor, log_var: Tensor, z: Tensor) -> None:
        """Adds the posteriors of some images, each (B, D), with a draw ``z`` from the posterior."""
        self.mean.append(mean.detach())
        self.log_var.append(log_var.detach())
        self.z.append(z.detach())

    def compute(self) -> Found:
        mean, log_var, z = (
            torch.cat(state) if isinstance(state, list) else state for state in (self.mean, self.log_var, self.z)
        )
        kl = gaussian_kl(mean, log_var)
        active = mean.var(0, correction=0) > ACTIVE
        # Some that do not depend on which rank had which images.
        some = z[:, 0].argsort()[torch.linspace(0, len(z) - 1, min(MOST, len(z)), device=z.device).long()]
        return Found(kl.mean(0), active.sum().to(kl.dtype), mutual_information(mean[some], log_var[some], z[some]))


def mutual_information(mean: Tensor, log_var: Tensor, z: Tensor) -> Tensor:
    """See :class:`PosteriorScores`; each (N, D)."""
    rows = []
    for some in z.split(100):  # (100, N, D) at once
        log_q = -0.5 * (math.log(2 * math.pi) + log_var + (some[:, None] - mean).square() * (-log_var).exp()).sum(2)
        rows.append(log_q)
    log_q_z_given_x = torch.cat(rows)  # (N, N): row n of z_n under each posterior
    log_q_z = log_q_z_given_x.logsumexp(1) - math.log(len(z))
    return (log_q_z_given_x.diagonal() - log_q_z).mean()
