"""Random crops, flips, colors and blurs of whole batches on the device, one independent draw per sample.

Does for a whole batch at once what torchvision's v2 transforms do for one image, as a function of uniform draws. (Given
a batch, those transforms draw once for all of it, which contrastive learning must not do.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from common.checks import at_least, within

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

LUMA = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue in gray"""

CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**30}
"""approximate memory for the images processed at once; on a CPU much of it should stay in the cache"""

ATTEMPTS = 10
"""torchvision's, to draw a crop that fits"""


class Parameters(NamedTuple):
    """What happens to each of B images, on the CPU."""

    top: Tensor
    """(B,) int64: first row of the crop"""
    left: Tensor
    """(B,) int64: its first column"""
    height: Tensor
    """(B,) int64"""
    width: Tensor
    """(B,) int64"""
    flip: Tensor
    """(B,) bool: mirrored left to right"""
    factors: Tensor
    """(B, 3) of brightness, contrast and saturation; 1 changes nothing"""
    hue: Tensor
    """(B,) shift of the hue in turns; 0 changes nothing"""
    order: Tensor
    """(B, 4) int64: which of brightness, contrast, saturation and hue comes first, second, …"""
    gray: Tensor
    """(B,) bool"""
    sigma: Tensor
    """(B,) deviation of the blur in pixels; 0 for none"""
    solarize: Tensor
    """(B,) bool: pixels brighter than ½ are inverted"""


@dataclass(frozen=True)
class Augmentation:
    """A random crop resized to ``size``, flip, color jitter, grayscale, blur and solarization, in this order.

    The caller passes the draws, so that a resumed run repeats them and two ranks draw what one would.
    Saturation, hue and grayscale do nothing to an image of one channel.

    Args:
        size: side of the output in pixels; by default the images' shorter side.
        scale: range of the crop's share of the area, drawn uniformly.
        ratio: range of its width over its height, drawn log-uniformly.
        flip: probability of a flip.
        brightness, contrast, saturation: a factor is drawn from 1 ∓ this, at least 0.
        hue: a shift is drawn from ∓ this, in turns around the color circle.
        jitter_probability: probability that these four are applied, in a random order.
        grayscale, blur, solarize: probabilities.
        blur_sigma: range of the Gaussian's deviation in pixels. Its kernel is about a tenth of ``size``, as SimCLR's.

    Raises:
        ValueError: an argument is out of range.
    """

    size: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    num_draws: ClassVar[int] = 2 * ATTEMPTS + 13
    """number of uniform draws per sample: always the same, so that an option does not shift other draws"""

    def __post_init__(self) -> None:
        at_least(1, "or null for the images' own", size=self.size)
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale={low, high}: expected 0 < low <= high <= 1")
        for name in ("ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name}={low, high}: expected 0 < low <= high")
        within("[0, 1]", flip=self.flip, jitter_probability=self.jitter_probability, grayscale=self.grayscale)
        within("[0, 1]", blur=self.blur, solarize=self.solarize)
        within("[0, inf)", brightness=self.brightness, contrast=self.contrast, saturation=self.saturation)
        within("[0, 0.5]", hue=self.hue)

    def __call__(self, images: Tensor, draws: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, C, H, W) → (B, C, size, size) in 0..1, channels last.

        Args:
            images: uint8, or float in 0..1; C is 1 or 3.
            draws: (B, num_draws), uniform in [0, 1). Best on the CPU: then nothing waits for a GPU.
            dtype: of the output; computations use float32.

        Raises:
            ValueError: a wrong number of channels or draws.
        """
        if draws.shape != (len(images), self.num_draws):
            raise ValueError(f"draws of shape {tuple(draws.shape)}: expected {(len(images), self.num_draws)}")
        return self.apply(images, self.parameters(draws, *images.shape[2:]), dtype)

    def parameters(self, draws: Tensor, height: int, width: int) -> Parameters:
        """The parameters that the draws (B, num_draws) determine for B images of height × width."""
        draws = draws.cpu().float()
        areas, ratios, rest = draws.split([ATTEMPTS, ATTEMPTS, 13], 1)
        u_top, u_left, u_flip, u_jitter, b, c, s, u_hue, u_order, u_gray, u_blur, u_sigma, u_solarize = rest.unbind(1)
        top, left, crop_height, crop_width = self._boxes(areas, ratios, u_top, u_left, height, width)
        jittered = u_jitter < self.jitter_probability
        strength = draws.new_tensor([self.brightness, self.contrast, self.saturation])
        lowest = (1 - strength).clamp_min(0)
        factors = lowest + torch.stack((b, c, s), 1) * (1 + strength - lowest)
        low, high = self.blur_sigma
        orders = torch.tensor(list(itertools.permutations(range(4))))
        return Parameters(
            top=top,
            left=left,
            height=crop_height,
            width=crop_width,
            flip=u_flip < self.flip,
            factors=factors.where(jittered[:, None], 1.0),
            hue=((2 * u_hue - 1) * self.hue).where(jittered, 0.0),
            order=orders[(u_order * len(orders)).long()],
            gray=u_gray < self.grayscale,
            sigma=(low + u_sigma * (high - low)).where(u_blur < self.blur, 0.0),
            solarize=u_solarize < self.solarize,
        )

    def _boxes(
        self, areas: Tensor, ratios: Tensor, u_top: Tensor, u_left: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of torchvision's RandomResizedCrop: the first attempt that fits, or the center.

        Args:
            areas, ratios: (B, ATTEMPTS) draws.
            u_top, u_left: (B,) draws.
        """
        area = height * width * (self.scale[0] + areas * (self.scale[1] - self.scale[0]))
        low, high = map(math.log, self.ratio)
        ratio = (low + ratios * (high - low)).exp()
        widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)

        # If none fits: the largest box around the center whose ratio is in the range.
        central_width = min(width, round(height * max(self.ratio)))
        central_height = min(height, round(width / min(self.ratio)))
        none = ~fits.any(1)
        first = fits.int().argmax(1, keepdim=True)
        crop_width = widths.gather(1, first)[:, 0].masked_fill(none, central_width)
        crop_height = heights.gather(1, first)[:, 0].masked_fill(none, central_height)
        top = (u_top * (height - crop_height + 1)).long().masked_fill(none, (height - central_height) // 2)
        left = (u_left * (width - crop_width + 1)).long().masked_fill(none, (width - central_width) // 2)
        return top, left, crop_height, crop_width

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Parameters, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, C, H, W) → (B, C, size, size), as :meth:`__call__`, by given parameters."""
        count, channels, height, width = images.shape
        if channels not in (1, 3):
            raise ValueError(f"images of {channels} channels: expected 1 or 3")
        size, device = self.size or min(height, width), images.device
        out = torch.empty(count, size, size, channels, dtype=dtype, device=device)
        one = 4 * (channels * (height * width + 5 * size * size) + 3 * size * (height + width))  # bytes, about
        most = max(1, CHUNK_BYTES.get(device.type, 2**28) // one)
        # Samples are sorted by when their hue is changed, so that a chunk has it at one place, or nowhere.
        shifted = (parameters.hue != 0) & (channels == 3)
        hue_place, order = (parameters.order == HUE).int().argmax(1).where(shifted, -1).sort(stable=True)
        parameters = Parameters(*(values[order] for values in parameters))
        numbers = [values.to(device, non_blocking=True) for values in _numbers(parameters, channels)]
        order, start = order.to(device, non_blocking=True), 0
        # Else autocast would round the products, where this is called within a step.
        with torch.autocast(device.type, enabled=False):
            for place, group in zip(*(found.tolist() for found in hue_place.unique(return_counts=True)), strict=True):
                for length in _even(group, most):
                    part = slice(start, start := start + length)
                    chosen = Parameters(*(values[part] for values in parameters))
                    x = images.index_select(0, order[part])
                    x = _augmented(x, size, place, chosen, *(values[part] for values in numbers))
                    # To the output's type first: a copy that also moves the channels is fast only within one type.
                    out.index_copy_(0, order[part], x.to(dtype).permute(0, 2, 3, 1).contiguous())
        return out.permute(0, 3, 1, 2)


def _even(count: int, most: int) -> list[int]:
    """``count`` in as few parts of at most ``most`` as there can be, of about equal size."""
    parts = math.ceil(count / most)
    return [count // parts + (i < count % parts) for i in range(parts)]


def _numbers(parameters: Parameters, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The inputs of :func:`_augmented` on the device: boxes, matrices, contrasts and hue shifts.

    Brightness, contrast and saturation are clamp(f·x + (1 − f)·base), the base black, the image's mean gray, or its
    gray. So they differ only in a matrix M of colors and in a share m of the mean gray: clamp(M x + m·mean).

    Returns:
        (B, 6) top, left, height, width, 0, flip; (B, 3, C, C) M and (B, 3) m of the three in their order; (B,).
    """
    p = parameters
    kinds = p.order[p.order != HUE].view(len(p.order), 3)
    factors = p.factors.gather(1, kinds)
    gray = (1 - factors) * (kinds == SATURATION)
    eye = torch.eye(channels, dtype=torch.float32)
    matrices = factors[..., None, None] * eye + gray[..., None, None] * _luma(channels)
    boxes = torch.stack((p.top, p.left, p.height, p.width, torch.zeros_like(p.flip), p.flip), 1).float()
    return boxes, matrices, (1 - factors) * (kinds == CONTRAST), p.hue


def _augmented(
    images: Tensor,
    size: int,
    hue_place: int,
    parameters: Parameters,
    boxes: Tensor,
    matrices: Tensor,
    contrasts: Tensor,
    hue: Tensor,
) -> Tensor:
    """(B, C, H, W) → (B, C, size, size) float32.

    Args:
        hue_place: how many of the three other changes of color come before that of the hue; −1 where it stays.
        boxes, matrices, contrasts, hue: of :func:`_numbers`.
    """

    def change(mask: Tensor, function: Callable[..., Tensor], *arguments: Tensor) -> None:
        """Those rows of x alone that the mask (B,) has."""
        if mask.any():
            rows, *chosen = (
                values.to(x.device, non_blocking=True)
                for values in (mask.nonzero()[:, 0], *(values[mask] for values in arguments))
            )
            changed = function(x.index_select(0, rows), *chosen)
            x.index_copy_(0, rows, changed.expand(-1, *x.shape[1:]))

    x = _crop(images, boxes, size)
    if hue_place >= 0 or (parameters.factors != 1).any():
        luma = _luma(x.shape[1]).to(x.device, non_blocking=True)
        for place in range(4):
            if place == hue_place:
                x = _rotate_hue(x, hue)
            if place < 3:
                x = _blend(x, matrices[:, place], contrasts[:, place], luma)
    if x.shape[1] == 3:
        change(parameters.gray, _gray)
    change(parameters.sigma > 0, _blur, parameters.sigma)
    change(parameters.solarize, lambda x: torch.minimum(x, 1 - x))
    return x


def _gray(x: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W)."""
    red, green, blue = (x[:, i : i + 1] for i in range(3))
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _luma(channels: int) -> Tensor:
    """(C,): what gray is made of."""
    return torch.tensor(LUMA if channels == 3 else (1.0,), dtype=torch.float32)


def _crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """(B, C, H, W) → (B, C, size, size) float in 0..1: torchvision's antialiased bilinear ``resized_crop``, and a flip.

    Args:
        box: (B, 6), start, length and reversal, each of the rows and then of the columns.
    """
    # Rows and columns in one call, which is faster.
    starts, lengths, flips = box.T.reshape(3, -1)
    sides = images.shape[2:]
    weights = _triangles(starts, lengths, flips, size, max(sides))
    rows, columns = (each[:, :, :side] for each, side in zip(weights.chunk(2), sides, strict=True))
    x = images.to(torch.float32, memory_format=torch.contiguous_format)
    return _separable(x, rows / 255 if images.dtype == torch.uint8 else rows, columns).clamp_(0, 1)


def _triangles(start: Tensor, length: Tensor, flip: Tensor, size: int, side: int) -> Tensor:
    """(B, size, side): the weight of each pixel of a side in each pixel of its resized stretch, which is B of them.

    Args:
        start, length: (B,) of the stretch.
        flip: (B,) 1 where it is reversed, else 0.
    """
    at = (torch.arange(size, dtype=torch.float32, device=start.device) + 0.5) / size  # in 0..1 of the stretch
    at = (at - flip[:, None]).abs_()
    center = start[:, None] + length[:, None] * at - 0.5
    pixels = torch.arange(side, dtype=torch.float32, device=start.device)
    inside = (pixels >= start[:, None]) & (pixels < (start + length)[:, None])
    # A triangle about the center: as wide as an output pixel, or as an input pixel where the image is enlarged.
    narrowness = -(size / length).clamp_max_(1)
    weights = (pixels - center[:, :, None]).abs_().mul_(narrowness[:, None, None]).add_(1).clamp_min_(0)
    weights.mul_(inside[:, None])
    return weights.div_((weights @ torch.ones_like(pixels))[:, :, None])


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) → (B, C, h, w) by a matrix along each axis and for each sample, (B, h, H) and (B, w, W)."""
    x = torch.bmm(x.flatten(1, 2), columns.mT).unflatten(1, x.shape[1:3])
    return rows[:, None] @ x


def _blend(x: Tensor, matrix: Tensor, contrast: Tensor, luma: Tensor) -> Tensor:
    """(B, C, H, W) of one change of :func:`_numbers`, (B, C, C) and (B,)."""
    pixels = x.flatten(2)
    mean = contrast * (pixels.mean(2) @ luma)
    return torch.baddbmm(mean[:, None, None], matrix, pixels).clamp_(0, 1).view_as(x)


def _rotate_hue(x: Tensor, shift: Tensor) -> Tensor:
    """(B, 3, H, W) with its hue shifted by (B,) turns, its saturation and value as in HSV kept.

    Without a case distinction: the hue h in sixths is ±(2 + (g + b − r − max) / (max − min)), with the sign of g − b;
    and a channel is min + (max − min)·t, where t is a trapezoid over the circle, about 0, 2 or 4 for r, g, b.
    """
    red, green, blue = x.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    hue = (green + blue).sub_(red).sub_(high).div_(chroma.clamp_min(1e-12)).add_(2).copysign_(green - blue)
    # Kept positive, since frac() of less than 0 is less than 0.
    hue = torch.add(shift[:, None, None] + 2, hue, alpha=1 / 6).frac_().mul_(6)
    middle = torch.tensor((3.0, 2.0, 4.0), dtype=torch.float32).to(x.device, non_blocking=True)
    t = hue[:, None] - middle[:, None, None]
    t.abs_()
    t[:, 0].neg_().add_(3)  # red's is cut where the circle is: 3 − |h − 3| is the distance from 0
    return t.neg_().add_(2).clamp_(0, 1).mul_(chroma[:, None]).add_(low[:, None])


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """(B, C, S, S) blurred by a Gaussian of deviation (B,), the edges mirrored as torchvision does."""
    size = x.shape[2]
    radius = min(max(1, size // 20), size - 1)
    pixels = torch.arange(size + 2 * radius, dtype=torch.float32, device=x.device)
    distance = pixels - (pixels[:size, None] + radius)  # from each pixel to each of the padded side
    weights = (-0.5 * (distance / sigma[:, None, None]).square_()).exp_().mul_(distance.abs() <= radius)
    weights.div_(weights.sum(2, keepdim=True))
    matrix = weights[:, :, radius : radius + size]
    matrix[:, :, 1 : radius + 1] += weights[:, :, :radius].flip(2)
    matrix[:, :, size - 1 - radius : size - 1] += weights[:, :, radius + size :].flip(2)
    return _separable(x, matrix, matrix)
