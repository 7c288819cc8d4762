"""The one way to read a picture: what training sees of a file is what a trained model sees of it when it is asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from common.checks import one_of
from common.files import nearest_path

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["crop", "squash", "pad"]
T = TypeVar("T")

EXTENSIONS = (*(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff", ".ppm", ".pgm"),)
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "AVIF", "TIFF", "PPM")
"""Pillow's names of what is read; some other formats, such as PostScript, are programs rather than data"""


@dataclass(frozen=True)
class Decoded:
    """A picture file, read: see :func:`decode`."""

    image: Image
    """upright, of mode "L" or "RGB" with 8 bits"""
    frames: int
    """1, or more for an animation, of which this is the first"""


def decode(content: bytes) -> Decoded:
    """A picture file as people see it, in 8 bits of gray or RGB.

    The camera's orientation is applied, transparent pixels are laid over white, 16 bits are scaled to 8, floats count
    0..1, palettes and CMYK are converted, and of several frames the first one is taken.

    Raises:
        ValueError: the file is broken, is none of :data:`FORMATS`, or is so large that Pillow refuses it.
    """
    return reading(content, lambda image: Decoded(flattened(image), frames_of(image)))


def reading(content: bytes, made: Callable[[Image], T]) -> T:
    """What is made of a picture file, which is loaded, while it is open.

    Raises:
        ValueError: see :func:`decode`; also whatever ``made`` raises, as one line.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise ValueError("the file is empty")
    Image.init()
    try:
        with Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            image.load()
            return made(image)
    except UnidentifiedImageError:  # whose own message is the address of an object
        raise ValueError(f"not an image in {', '.join(FORMATS)}") from None
    except Exception as error:  # broken files make Pillow raise almost anything, KeyError included
        raise ValueError(" ".join(str(error).split()) or repr(error)) from error


def frames_of(image: Image) -> int:
    """1, or more for an animation. A photograph of a phone may hold several pictures of one scene: no frames."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def flattened(image: Image) -> Image:
    """An image of Pillow of any mode as :func:`decode` returns it.

    Raises:
        ValueError: its numbers are out of range: integers of more than 16 bits, or floats outside 0..1.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # "I;16" too
        image = Image.fromarray(_eight_bits(np.asarray(image).astype(np.int64), 65535))
    elif image.mode == "F":
        image = Image.fromarray(_eight_bits(np.asarray(image), 65535))
    if image.has_transparency_data:
        is_gray = image.mode in ("LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if is_gray else "RGB")
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _eight_bits(values: np.ndarray, most: int) -> np.ndarray:
    """Numbers as uint8, see :func:`check_range`."""
    check_range(values, most)
    if np.issubdtype(values.dtype, np.floating):
        rounded: np.ndarray = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
        return rounded
    if most == 65535:
        values = (values.astype(np.int64) + 128) // 257
    return values.astype(np.uint8)


def check_range(values: np.ndarray, most: int) -> None:
    """Integers count 0..``most`` (255 or 65535), floats 0..1.

    Raises:
        ValueError: a number is outside that, or is none (NaN).
    """
    low, high = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating):
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # so for NaN too
            raise ValueError(f"image with values in {low:.4g}..{high:.4g}: expected floats in 0..1 (or integers)")
    elif low < 0 or high > most:
        raise ValueError(f"image with integers in {low}..{high}: expected 0..{most} (or floats in 0..1)")


def opened(picture: Any) -> Image:
    """A picture of any kind as :func:`decode` returns it.

    Args:
        picture: a path; an image of Pillow; an array (H, W) or (H, W, C); or a tensor (H, W), (C, H, W) or
            (1, C, H, W), with 1 to 4 channels: gray, gray and alpha, RGB, RGB and alpha. Integers count 0..255, those
            of type uint16 and Pillow's of mode "I" 0..65535, and floats 0..1.

    Raises:
        FileNotFoundError: there is no such file. TypeError: it is not a picture. ValueError: its shape or range is not
        that of a picture; a file is broken, names it.
    """
    if isinstance(picture, (str, Path)):
        path = Path(picture).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"image={path}: no such file{nearest_path(path)}")
        try:
            found = decode(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: cannot be decoded: {error}") from error
        if found.frames > 1:
            rank_zero_warn(f"{path}: only the first of {found.frames} frames is used")
        return found.image
    if hasattr(picture, "getexif"):  # Pillow's, without importing it
        return flattened(picture)
    from PIL import Image

    values = numbers_of(picture)
    pixels = _eight_bits(values, 65535 if values.dtype == np.uint16 else 255)
    return flattened(Image.fromarray(np.ascontiguousarray(pixels)))


def numbers_of(picture: object) -> np.ndarray:
    """An array or a tensor, as :func:`opened` takes it, as (H, W) or (H, W, 2 to 4) integers or floats.

    Raises:
        TypeError: it is neither, or of other numbers. ValueError: its shape is not that of a picture.
    """
    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
        tensor = tensor[0] if tensor.dim() == 4 and len(tensor) == 1 else tensor
        array = (tensor.movedim(0, -1) if tensor.dim() == 3 else tensor).contiguous()
        values = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
        expected = "(H, W), (C, H, W)"
    elif isinstance(picture, np.ndarray):
        values, expected = picture, "(H, W), (H, W, C)"
    else:
        kind = type(picture).__name__
        raise TypeError(f"image of type {kind}: expected a path, a PIL image, an array or a tensor")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] > 4):
        shape = tuple(picture.shape)
        raise ValueError(f"image of shape {shape}: expected {expected} with 1 to 4 channels")
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind not in "iuf":
        raise TypeError(f"image of numbers of type {values.dtype}: expected integers or floats")
    return values


def fitted(image: Image, size: tuple[int, int], fit: Fit) -> Image:
    """An image of mode "L" or "RGB" brought to a size (H, W), with antialiasing.

    Args:
        fit: "crop" keeps the largest part around the center that has the size's proportions, "squash" keeps everything
            and changes the proportions, and "pad" keeps both and adds white at the sides.
    """
    from PIL import Image as pillow

    height, width = size
    if image.size == (width, height):
        return image
    if fit == "squash":
        return image.resize((width, height), pillow.Resampling.BILINEAR)
    if fit == "crop":  # only what is kept is resized
        scale = min(image.width / width, image.height / height)
        kept = (width * scale, height * scale)
        left, top = (image.width - kept[0]) / 2, (image.height - kept[1]) / 2
        return image.resize((width, height), pillow.Resampling.BILINEAR, (left, top, left + kept[0], top + kept[1]))
    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    page = pillow.new(image.mode, (width, height), "white")
    page.paste(image.resize(inner, pillow.Resampling.BILINEAR), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return page


def channels_first(image: Image, channels: int) -> np.ndarray:
    """An image as (C, H, W) uint8, with C 1 (its luminance) or 3."""
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def as_floats(images: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) uint8 → floats in 0..1."""
    # Channels last is the faster layout for convolutions, on CPUs and on GPUs.
    return images.to(dtype, memory_format=torch.channels_last).div_(255)


def resized(images: Tensor, size: Sequence[Any]) -> Tensor:
    """(B, C, H, W) floats brought to another size, with antialiasing: their middle, if its proportions are others."""
    if list(images.shape[2:]) == list(size):
        return images
    height, width = size
    scale = min(images.shape[2] / height, images.shape[3] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (images.shape[2] - rows) // 2, (images.shape[3] - columns) // 2
    middle = images[:, :, top : top + rows, left : left + columns]
    output: Tensor = F.interpolate(middle, (height, width), mode="bilinear", antialias=True)
    return output


def are_several(pictures: object) -> bool:
    """Whether pictures are given rather than one: a list or tuple of them, or an array or tensor with four axes."""
    return isinstance(pictures, (list, tuple)) or getattr(pictures, "ndim", 0) == 4


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size becomes what a network takes.

    A data module says how it does that (its fact ``preprocessing``), the model's checkpoint keeps it, and whatever a
    trained model is asked with goes the same way.

    Args:
        image_shape: (C, H, W) that the network takes, with C 1 or 3.
        fit: how a file is brought to the size in which it is stored: see :func:`fitted`.
        stored: (H, W) of the stored pictures, if the network takes them in another size: see :func:`resized`.

    Raises:
        ValueError: no such ``fit``.
    """

    image_shape: Sequence[int]
    fit: Fit = "crop"
    stored: Sequence[int] | None = None

    def __post_init__(self) -> None:
        one_of(Fit, fit=self.fit)

    def pixels(self, image: Image) -> np.ndarray:
        """An image of mode "L" or "RGB" as it is stored: (C, H, W) uint8."""
        channels, *size = self.image_shape
        height, width = self.stored or size
        # Gray before it is resized, as one reads a gray file.
        image = image.convert("L") if channels == 1 else image
        return channels_first(fitted(image, (height, width), self.fit), channels)

    def __call__(self, pictures: Any, module: nn.Module | None = None) -> Tensor:
        """Pictures as the network takes them: (B, C, H, W) in 0..1.

        Args:
            pictures: one, as :func:`opened` takes it, or several: a list of them, or an array or tensor of them. A
                float tensor of the network's own shape stays as it is; all else passes through 8 bits, like a file.
            module: that takes them; they come on its device and in its precision.

        Raises:
            FileNotFoundError, TypeError, ValueError: as :func:`opened`; also if the list is empty.
        """
        several = list(pictures) if are_several(pictures) else [pictures]
        if not several:
            raise ValueError("images=[]: expected at least one")
        like = torch.empty(0) if module is None else next(module.parameters())
        return torch.cat([self._one(picture, like) for picture in several])

    def _one(self, picture: Any, like: Tensor) -> Tensor:
        exact = isinstance(picture, Tensor) and picture.is_floating_point()
        if exact and list(picture.shape) == list(self.image_shape):
            low, high = float(picture.min()), float(picture.max())
            if not (low >= -1e-3 and high <= 1 + 1e-3):  # so for NaN too
                raise ValueError(f"image with values in {low:.4g}..{high:.4g}: expected floats in 0..1 (or integers)")
            found: Tensor = picture[None].to(like).clamp(0, 1)
            return found
        pixels = torch.from_numpy(self.pixels(opened(picture)))[None].to(like.device)
        return resized(as_floats(pixels, like.dtype), self.image_shape[1:])
