"""Projection heads, between a representation and a contrastive loss."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from common.checks import one_of
from lit_models.networks.batch_norm import GlobalBatchNorm1d


def projection_head(in_dim: int, hidden_dim: int, out_dim: int, layers: int = 2, norm: bool = False) -> nn.Sequential:
    """``layers`` linear layers with ReLU between them: (B, in_dim) → (B, out_dim).

    Args:
        norm: batch normalization after each layer (after the last one without a ReLU, as in SimCLR's code), which makes
            the layer's bias useless.

    Raises:
        ValueError: not one to three layers.
    """
    one_of((1, 2, 3), head_layers=layers)
    sizes = [in_dim, *[hidden_dim] * (layers - 1), out_dim]
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules.append(nn.Linear(before, after, bias=not norm))
        if norm:
            modules.append(GlobalBatchNorm1d(after))
        modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules[:-1])
