"""How an image was damaged: tasks, built from linear operators with their exact adjoints.

A task is y = m ⊙ (A x + n): a linear operator A, noise n, and a mask m of the known measurements. So the operator of
denoising is the identity, that of super-resolution a filter that shrinks the image; inpainting has a mask.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import at_least, more_than, nearest, one_of, within
from common.files import existing, nearest_path
from common.full_depth import in_full
from common.pictures import channels_first, decode
from datamodules.parts.operators import Blur, Downsample, Identity, Kernel, Operator

FACTORS = range(2, 9)


class Task:
    """What was done to the images; subclasses define another ``operator``.

    Args:
        sigma: deviation of the Gaussian noise, in units of 1/255. ``null`` means unknown; it is then estimated.

    Raises:
        ValueError: ``sigma`` is negative.
    """

    takes_own_defaults: ClassVar[bool] = True
    """whether a task that is named on the command line leaves out the options of the one in its place"""
    luma: ClassVar[bool] = False
    """whether PSNR and SSIM use only the brightness Y, as super-resolution papers report them"""
    border: ClassVar[int] = 0
    """number of pixels at each side that PSNR and SSIM leave out"""
    multiple: int = 1
    """the sides of a restored image must be multiples of this"""

    def __init__(self, sigma: float | None = 0.0) -> None:
        at_least(0, "or null where the noise is unknown", sigma=sigma)
        self.sigma = sigma

    def operator(self, shape: Sequence[int]) -> Operator:
        """The operator A for images of ``shape`` (C, H, W)."""
        return Identity()

    def restored_shape(self, shape: Sequence[int]) -> list[int]:
        """(C, H, W) of the image behind measurements of ``shape`` (C, h, w)."""
        return list(shape)

    def mask(self, shape: Sequence[int], generator: torch.Generator, degraded: bool) -> Tensor:
        """(1, h, w) for measurements of ``shape``, 1 where they are known; (1, 1, 1) if all of them are.

        Args:
            degraded: whether the image is damaged already, so that no damage is added.
        """
        return torch.ones(1, 1, 1)

    def damage(self, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """An image (C, H, W) in 0..1 → the measurements (C, h, w), in 0..1 and 0 where unknown, and the mask."""
        measured = self.operator(truth.shape)(truth[None])[0]  # an operator is always given several images
        measured = self.noisy(measured, generator).clamp(0, 1)  # as a file holds it, and as the papers' data
        mask = self.mask(measured.shape, generator, degraded=False)
        return measured * mask, mask

    def noisy(self, measured: Tensor, generator: torch.Generator) -> Tensor:
        if self.sigma is None:
            raise ValueError("sigma=null with degraded=false: expected the deviation of the noise to add")
        if self.sigma == 0:
            return measured
        return measured + self.sigma / 255 * torch.randn(measured.shape, generator=generator)

    @property
    def leaves_known(self) -> bool:
        """Whether some pixels of a restored image are known without noise, so that they come back as they are."""
        return False

    def put_back(self, restored: Tensor, degraded: Tensor, mask: Tensor) -> Tensor:
        """Restored images (B, C, H, W) with whatever of them was measured as it is; here nothing was."""
        return restored

    def remark(self, mask: Tensor) -> str:
        """What a person should know of a mask (B or 1, h, w), in a line; by default nothing."""
        return ""

    def noise_level(self, degraded: Tensor, mask: Tensor) -> Tensor:
        """(B,): the noise deviation in the measurements, in units of the brightness 0..1.

        It is an estimate if ``sigma`` is unknown, and otherwise the smaller of the two: clipped values carry less noise
        than was added, and the image's own detail can only make the estimate larger.
        """
        estimate = estimated_noise(degraded, mask)
        if self.sigma is None:
            return estimate.nan_to_num(0)
        return estimate.fmin(estimate.new_tensor(self.sigma / 255))

    def trivial(self, degraded: Tensor, mask: Tensor) -> Tensor:
        """The trivial restoration, without any method: (B, C, h, w) → (B, C, H, W). Here it is the image itself."""
        if not bool((mask == 1).all()):
            degraded = nearest_fill(degraded, mask)
        _, height, width = self.restored_shape(degraded.shape[1:])
        if (height, width) == tuple(degraded.shape[2:]):
            return degraded
        # With antialias the kernel is that of MATLAB and Pillow (a = −½), by which papers report; without, a = −¾.
        return F.interpolate(degraded, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


class Denoise(Task):
    """Noise only: Gaussian of deviation ``sigma``, or Poisson.

    Args:
        sigma: in units of 1/255; ``null`` if it is unknown.
        poisson_peak: photons that make white, for Poisson instead of Gaussian noise; fewer photons give more noise.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, sigma: float | None = 25.0, poisson_peak: float | None = None) -> None:
        super().__init__(sigma)
        more_than(0, "or null for Gaussian noise", poisson_peak=poisson_peak)
        self.poisson_peak = poisson_peak

    def noisy(self, measured: Tensor, generator: torch.Generator) -> Tensor:
        if self.poisson_peak is None:
            return super().noisy(measured, generator)
        return torch.poisson(measured * self.poisson_peak, generator=generator) / self.poisson_peak

    def noise_level(self, degraded: Tensor, mask: Tensor) -> Tensor:
        if self.poisson_peak is None:
            return super().noise_level(degraded, mask)
        return (degraded.flatten(1).mean(1) / self.poisson_peak).sqrt()  # a Poisson variable's variance is its mean


class SuperResolve(Task):
    """Restores an image that is ``factor`` times as large, from which the filter ``kernel`` would make this small one.

    PSNR and SSIM use the brightness Y (ITU-R BT.601, as in MATLAB's ``rgb2ycbcr``), without 4 pixels at each side.

    Raises:
        ValueError: an argument is out of range.
    """

    luma = True
    border = 4

    def __init__(self, factor: int = 4, kernel: Kernel = "lanczos3", sigma: float | None = 0.0) -> None:
        super().__init__(sigma)
        one_of(FACTORS, factor=factor)
        one_of(Kernel, kernel=kernel)
        self.factor = self.multiple = factor
        self.kernel: Kernel = kernel

    def operator(self, shape: Sequence[int]) -> Operator:
        return Downsample(shape[-2], shape[-1], self.factor, self.kernel)

    def restored_shape(self, shape: Sequence[int]) -> list[int]:
        return [shape[0], shape[1] * self.factor, shape[2] * self.factor]


class Inpaint(Task):
    """Fills in missing pixels: missing at random, where a mask is black, or under a text.

    Args:
        missing: share of pixels missing at random.
        mask: an image file of the image's size, or its path below the data folder, ``LIT_DATA``; white means known. One
            of the numbers 0 and 1 means what one of black and white would.
        text: a text written over the whole image.
        invert_mask: whether the mask is white where the image is *un*known.

    Raises:
        ValueError: not exactly one of the three is given; it is out of range; the mask is all black, all white or of
            another size.
        FileNotFoundError: the mask file does not exist.
    """

    def __init__(
        self,
        missing: float | None = None,
        mask: str | None = None,
        text: str | None = None,
        sigma: float | None = 0.0,
        invert_mask: bool = False,
    ) -> None:
        super().__init__(sigma)
        given = [
            f"{name}={value}"
            for name, value in (("missing", missing), ("mask", mask), ("text", text))
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError(f"{', '.join(given) or 'nothing is missing'}: expected one of missing, mask and text")
        within("(0, 1)", missing=missing)
        if text is not None and not text.strip():
            raise ValueError(f"text={text!r}: expected a text to write")
        if invert_mask and mask is None:
            raise ValueError(f"invert_mask=true with {given[0]}: expected mask=FILE to invert")
        self.mask_file = None if mask is None else existing_file("mask", mask)
        self.missing, self.text, self.invert_mask = missing, text, invert_mask

    def mask(self, shape: Sequence[int], generator: torch.Generator, degraded: bool) -> Tensor:
        height, width = shape[-2:]
        if degraded and self.mask_file is None:
            raise ValueError("degraded=true without a mask: expected mask=FILE, white where pixels are known")
        if self.missing is not None:
            return (torch.rand(1, height, width, generator=generator) >= self.missing).float()
        if self.text is not None:
            return text_mask(self.text, height, width)
        assert self.mask_file is not None
        known = mask_of_file(self.mask_file)
        if tuple(known.shape[1:]) != (height, width):
            size = f"{known.shape[2]}×{known.shape[1]}"
            raise ValueError(f"mask={self.mask_file}: {size} pixels, expected the image's {width}×{height}")
        light, dark = ("unknown", "known") if self.invert_mask else ("known", "unknown")
        if not known.any():
            raise ValueError(f"mask={self.mask_file}: all black, expected white where the image is {light}")
        if known.all():
            raise ValueError(
                f"mask={self.mask_file}: all white (as transparent pixels are), expected black where the image is "
                f"{dark}"
            )
        return 1 - known if self.invert_mask else known

    @property
    def leaves_known(self) -> bool:
        return self.sigma == 0

    def put_back(self, restored: Tensor, degraded: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask == 1, degraded, restored) if self.leaves_known else restored

    def remark(self, mask: Tensor) -> str:
        if self.mask_file is None:
            return ""
        share = float((mask == 0).float().mean())
        line = f"mask={self.mask_file}: {100 * share:.1f} % of the pixels are unknown"
        if share <= 0.5:
            return line
        other = "false" if self.invert_mask else "true"
        return f"{line}; if black and white are the other way round, use invert_mask={other}"


class Jpeg(Denoise):
    """Removes the blocks and rings of JPEG: they are taken as noise of an unknown deviation.

    The blocks are coarser than white noise, so a network is less slow to learn them; the gain is smaller.

    Args:
        quality: at which an undamaged image is compressed, to damage it: 1..95.

    Raises:
        ValueError: it is out of range.
    """

    def __init__(self, quality: int = 10) -> None:
        super().__init__(sigma=None)
        within("[1, 95]", quality=quality)
        self.quality = quality

    def noisy(self, measured: Tensor, generator: torch.Generator) -> Tensor:
        from PIL import Image

        pixels = (255 * measured.clamp(0, 1)).round().byte().movedim(0, -1).numpy()
        image, content = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
        image.save(content, format="JPEG", quality=self.quality)
        return torch.from_numpy(in_full(content.getvalue()).values).to(measured)


class Deblur(Task):
    """Undoes a blur whose kernel is known, such as the shake of a camera.

    Args:
        kernel: an image file of what became of a point of light: black around it; or its path below the data folder.

    Raises:
        ValueError: the file cannot be decoded, or is all black. FileNotFoundError: it does not exist.
    """

    def __init__(self, kernel: str, sigma: float | None = 0.0) -> None:
        super().__init__(sigma)
        self.kernel_file = existing_file("kernel", kernel)
        try:
            self.kernel = torch.from_numpy(in_full(self.kernel_file.read_bytes()).values).mean(0)
            Blur(self.kernel)
        except ValueError as error:
            raise ValueError(f"kernel={kernel}: {str(error).removeprefix('kernel: ')}") from error

    def operator(self, shape: Sequence[int]) -> Operator:
        return Blur(self.kernel)


TASKS: dict[str, type[Task]] = {
    "denoise": Denoise,
    "super_resolve": SuperResolve,
    "inpaint": Inpaint,
    "jpeg": Jpeg,
    "deblur": Deblur,
}
"""by the names that people may call them"""
TASK_OPTIONS = ("sigma", "poisson_peak", "factor", "mask", "invert_mask", "kernel", "quality")
"""what may be said of the damage of an image"""


def task_asked_for(task: type[Task] | str | None, **options: Any) -> tuple[type[Task], dict[str, Any]]:
    """A task by its class or its name, or None, with its arguments: what is meant by them.

    Args:
        task: ``None``: :class:`Inpaint` if there is a mask, :class:`SuperResolve` if there is a factor, :class:`Deblur`
            if there is a kernel, and else :class:`Denoise`, where the noise is unknown unless ``sigma`` says it.
        options: arguments; None where they are not given.

    Raises:
        ValueError: there is no such task, or it has no such argument, or needs one.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if task is None:
        hints = {"mask": Inpaint, "factor": SuperResolve, "kernel": Deblur}
        made: Any = next((hint for name, hint in hints.items() if name in given), Denoise)
    elif isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"task={task}: expected {', '.join(TASKS)}{nearest(task, TASKS)}")
        made = TASKS[task]
    else:
        made = task
    known = inspect.signature(made).parameters
    for name, value in given.items():
        if name not in known:
            raise ValueError(
                f"{name}={value}: {made.__name__} has no such option; expected {', '.join(known) or 'none'}"
            )
    for name, needed in (("mask", Inpaint), ("kernel", Deblur)):
        if made is needed and not given:
            raise ValueError(f"{made.__name__} without {name}: expected {name}=FILE")
    return made, ({"sigma": None} if made is Denoise and "poisson_peak" not in given else {}) | given


def made_task(task: type[Task] | str | None, **options: Any) -> Task:
    """The task of :func:`task_asked_for`."""
    made, arguments = task_asked_for(task, **options)
    return made(**arguments)


def existing_file(argument: str, name: str) -> Path:
    """The path itself, or that below the data folder; raises FileNotFoundError, which names the argument."""
    file = existing(name)
    if not file.is_file():
        raise FileNotFoundError(f"{argument}={name}: no such file{nearest_path(file)}")
    return file


def mask_of_file(file: Path) -> Tensor:
    """(1, H, W): 1 where the image is brighter than half, or of numbers 0 and 1 where it is 1."""
    try:
        pixels = channels_first(decode(file.read_bytes()).image, 1)
    except ValueError as error:
        raise ValueError(f"mask={file}: cannot be decoded: {error}") from error
    return torch.from_numpy(pixels > (127 if pixels.max() > 1 else 0)).float()


def text_mask(text: str, height: int, width: int) -> Tensor:
    """(1, H, W): 0 under the text, which is repeated over the whole image."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(8, min(height, width) // 12)
    canvas = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    wide = max(1, int(draw.textlength(f"{text} ", font)))
    line = f"{text} " * (-(-2 * width // wide))
    for i, top in enumerate(range(0, height, round(1.5 * size))):
        draw.text((-(i * width // 3) % wide - wide, top), line, fill=0, font=font)
    return torch.from_numpy(np.array(canvas) > 127)[None].float()


def estimated_noise(images: Tensor, mask: Tensor) -> Tensor:
    """(B,): deviation of white Gaussian noise in images (B, C, H, W), from the finest diagonal wavelet coefficients.

    The median of |d| over 0.6745 (Donoho & Johnstone 1994, section 4), with the Haar wavelet: the image itself makes
    few of these coefficients large, and the median ignores them. Each covers 2 × 2 pixels; NaN if the ``mask``
    (B, 1, H, W) or (B, 1, 1, 1) leaves none complete.
    """

    def squares(x: Tensor) -> list[Tensor]:
        return [x[..., i : height + i : 2, j : width + j : 2] for i in (0, 1) for j in (0, 1)]

    height, width = (side // 2 * 2 - 1 for side in images.shape[2:])
    a, b, c, d = squares(images)
    known = torch.stack(squares(mask.expand_as(images))).amin(0) == 1
    details = ((a - b - c + d) / 2).abs()
    if details.numel() == 0:
        return images.new_full((len(images),), torch.nan)
    return details.where(known, torch.nan).flatten(1).nanmedian(1).values / 0.6745


def nearest_fill(degraded: Tensor, mask: Tensor) -> Tensor:
    """Replaces each unknown pixel with the nearest known one; (B, C, H, W) and (B, 1, H, W)."""
    from scipy.ndimage import distance_transform_edt  # type: ignore[import-untyped]

    filled = []
    for image, known in zip(degraded, mask, strict=True):
        places = distance_transform_edt((known[0] == 0).cpu().numpy(), return_distances=False, return_indices=True)
        rows, columns = torch.from_numpy(places.astype(np.int64)).to(image.device)
        filled.append(image[:, rows, columns])
    return torch.stack(filled)


def psnr(images: Tensor, truth: Tensor, luma: bool = False, border: int = 0) -> Tensor:
    """(B,): peak signal-to-noise ratio in dB of images (B, C, H, W) in 0..1: −10 log₁₀ of the mean squared error."""
    images, truth = compared(images, luma, border), compared(truth, luma, border)
    error = (images - truth).square().flatten(1).mean(1)
    return -10 * error.clamp_min(math.ulp(1.0)).log10()


def compared(images: Tensor, luma: bool, border: int) -> Tensor:
    """The part of images (B, C, H, W) to compare: all channels or the brightness Y, with or without the border."""
    if luma and images.shape[1] == 3:
        weights = images.new_tensor([65.481, 128.553, 24.966])[:, None, None] / 255
        images = (weights * images).sum(1, keepdim=True) + 16 / 255
    border = min(border, (min(images.shape[2:]) - 1) // 2)
    return images[..., border : images.shape[-2] - border, border : images.shape[-1] - border]
