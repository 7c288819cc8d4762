"""Encoders and decoders between images and codes, for autoencoders of either kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

Activation = Literal["relu", "tanh"]
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(sizes: Sequence[int], activation: Activation = "relu") -> nn.Sequential:
    """Linear layers of these sizes with the activation between them, but not after the last."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def halvings(size: int, count: int) -> list[int]:
    """The side of an image before and after each of ``count`` convolutions of stride 2."""
    sizes = [size]
    for _ in range(count):
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def conv_down(channels: Sequence[int]) -> nn.Sequential:
    """3×3 convolutions of stride 2, each with ReLU: (B, channels[0], H, W) → (B, channels[-1], ⌈H/2ⁿ⌉, ⌈W/2ⁿ⌉)."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def conv_up_double(channels: Sequence[int]) -> nn.Sequential:
    """The reverse of :func:`conv_down`: every layer doubles the map, whatever its size."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels[::-1]):
        layers += [nn.ConvTranspose2d(before, after, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_up(channels: Sequence[int], heights: Sequence[int], widths: Sequence[int]) -> nn.Sequential:
    """Transposed convolutions back to the sizes returned by :func:`halvings`, with ReLU between them."""
    layers: list[nn.Module] = []
    for (before, after), height, width in zip(
        pairwise(channels[::-1]), heights[-2::-1], widths[-2::-1], strict=True
    ):  # a side of 2n − 1 came to n as one of 2n did
        extra = (1 - height % 2, 1 - width % 2)
        layers += [nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=extra), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_encoder(image_shape: Sequence[int], channels: Sequence[int], out_dim: int) -> nn.Sequential:
    """(B, *image_shape) → (B, out_dim): convolutions and one linear layer."""
    sides = [halvings(side, len(channels))[-1] for side in image_shape[1:]]
    return nn.Sequential(
        conv_down([image_shape[0], *channels]), nn.Flatten(), nn.Linear(channels[-1] * math.prod(sides), out_dim)
    )


def conv_decoder(image_shape: Sequence[int], channels: Sequence[int], in_dim: int) -> nn.Sequential:
    """(B, in_dim) → (B, *image_shape): the mirror image of :func:`conv_encoder`."""
    heights, widths = (halvings(side, len(channels)) for side in image_shape[1:])
    grid = (channels[-1], heights[-1], widths[-1])
    return nn.Sequential(
        nn.Linear(in_dim, math.prod(grid)),
        nn.ReLU(),
        nn.Unflatten(1, grid),
        conv_up([image_shape[0], *channels], heights, widths),
    )
