"""The encoder–decoder with skip connections of the deep image prior, for several images at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import one_of
from common.distributed import rows_of_this_rank

Upsample = Literal["bilinear", "nearest"]


class SkipNetwork(nn.Module):
    """N independent networks of the same shape, one for each of N images, as grouped convolutions.

    Ulyanov et al. (2018), supplementary material, figure 21. Each level halves the map and comes back to its size:

        down: conv (stride 2), norm, LeakyReLU, conv, norm, LeakyReLU
        skip: conv 1×1, norm, LeakyReLU, beside all that lies below
        up:   [skip, what comes from below × 2], norm, conv, norm, LeakyReLU, conv 1×1, norm, LeakyReLU

    with reflection padding, and a 1×1 convolution and a sigmoid at the end. If a side is odd, the upsampled map is
    cropped to it, so images of any size keep their size. Network i is initialized, trained and normalized as if it were
    alone; each of several ranks runs only the networks of its images.

    Args:
        num_images: N.
        in_channels, out_channels: of an image's input and output.
        down, up, skip: channels of each level, starting with the finest; a skip of 0 means none.
        kernel_down, kernel_up: sides of the kernels.
        upsample: ``bilinear`` or ``nearest``.
        pointwise_up: whether each level ends in the 1×1 convolution (``need1x1_up`` of the authors' code).

    Raises:
        ValueError: the levels do not match; an argument is out of range.
    """

    def __init__(
        self,
        num_images: int,
        in_channels: int,
        out_channels: int,
        down: Sequence[int],
        up: Sequence[int],
        skip: Sequence[int],
        kernel_down: int = 3,
        kernel_up: int = 3,
        upsample: Upsample = "bilinear",
        pointwise_up: bool = True,
    ) -> None:
        super().__init__()
        if not down or not len(down) == len(up) == len(skip):
            raise ValueError(
                f"down={list(down)}, up={list(up)}, skip={list(skip)}: expected the same number of levels in each, at "
                "least one"
            )
        if min(*down, *up) < 1 or min(skip) < 0:
            raise ValueError(
                f"down={list(down)}, up={list(up)}, skip={list(skip)}: expected at least 1 channel in down and up, "
                "and at least 0 in skip"
            )
        for name, value in (("kernel_down", kernel_down), ("kernel_up", kernel_up)):
            if value < 1 or value % 2 == 0:
                raise ValueError(f"{name}={value}: expected an odd number")
        one_of(Upsample, upsample=upsample)
        n = num_images
        widths = [in_channels, *down]
        below = [*up[1:], down[-1]]  # channels that each level gets from the one below it
        self.levels = nn.ModuleList(
            Level(n, widths[i], down[i], below[i], skip[i], up[i], kernel_down, kernel_up, pointwise_up)
            for i in range(len(down))
        )
        self.output = Conv(n, up[0], out_channels, 1)
        self.upsample = upsample
        self.padding = max(kernel_down, kernel_up) // 2

    def least_side(self) -> int:
        """The smallest side in pixels.

        Normalizing the coarsest map needs two values per channel, and its reflection padding needs more pixels than it
        adds.
        """
        side = 1 + max(1, self.padding)  # of the coarsest map
        size: int = (side - 1) * 2 ** len(self.levels) + 1
        return size

    def forward(self, z: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W) in 0..1, for this rank's B of the N images."""
        logits = self.output(self._level(0, z))
        output: Tensor = logits.to(z.dtype).sigmoid()  # of bfloat16 a pixel would be one of few values
        return output

    def _level(self, i: int, x: Tensor) -> Tensor:
        level: Level = self.levels[i]  # type: ignore[assignment]
        deeper = level.down(x)
        if i + 1 < len(self.levels):
            deeper = self._level(i + 1, deeper)
        options = {"align_corners": False} if self.upsample == "bilinear" else {}
        deeper = F.interpolate(deeper, scale_factor=2, mode=self.upsample, **options)
        deeper = deeper[..., : x.shape[2], : x.shape[3]]
        output: Tensor = level.up(deeper if level.skip is None else torch.cat([level.skip(x), deeper], 1))
        return output


class Level(nn.Module):
    """The layers of one level of :class:`SkipNetwork`."""

    def __init__(
        self, n: int, above: int, down: int, below: int, skip: int, up: int, k_down: int, k_up: int, pointwise: bool
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(*block(n, above, down, k_down, stride=2), *block(n, down, down, k_down))
        self.skip = nn.Sequential(*block(n, above, skip, 1)) if skip else None
        last = block(n, up, up, 1) if pointwise else []
        self.up = nn.Sequential(Norm(n, skip + below), *block(n, skip + below, up, k_up), *last)


def block(n: int, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [Conv(n, in_channels, out_channels, kernel, stride), Norm(n, out_channels), nn.LeakyReLU(0.2, inplace=True)]


class Conv(nn.Conv2d):
    """A convolution (B, C, H, W) → (B, C′, H′, W′) with separate weights for each of N images."""

    def __init__(self, n: int, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(n * in_channels, n * out_channels, kernel, stride, groups=n)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = of_this_rank(self.weight, self.groups), of_this_rank(self.bias, self.groups)
        count, pad = len(x), self.kernel_size[0] // 2
        x = x.reshape(1, -1, *x.shape[2:])
        if pad:
            x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
        y = F.conv2d(x, weight, bias, self.stride, groups=count)
        return y.view(count, -1, *y.shape[2:])


class Norm(nn.Module):
    """Batch norm of one image: by the mean and the variance of its own channels, even in evaluation.

    So there are no running averages, which would only lag behind in a network fitted to one image, and which a step
    back would have to restore.
    """

    def __init__(self, n: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n * channels))
        self.bias = nn.Parameter(torch.zeros(n * channels))
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = of_this_rank(self.weight, self.n), of_this_rank(self.bias, self.n)
        y = F.batch_norm(x.reshape(1, -1, *x.shape[2:]), None, None, weight, bias, training=True)
        return y.view_as(x)


def of_this_rank(parameter: Tensor | None, n: int) -> Tensor:
    """The part of a parameter (N · K, …) for this rank's images; the parameter itself if there is one rank."""
    assert parameter is not None
    return rows_of_this_rank(parameter.unflatten(0, (n, -1))).flatten(0, 1)
