"""One or several damaged images, repeated as long as networks are fitted to them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor, nn

from common.checks import at_least
from common.distributed import rank_and_world_size
from common.files import existing, nearest_path
from common.full_depth import FullDepth, in_full
from common.pictures import EXTENSIONS, are_several, channels_first, decode, fitted
from common.randomness import keyed_generator
from datamodules.degradations import Denoise, Task
from datamodules.parts.loader import TensorLoader

EMBEDDED = ("china", "flower", "grace_hopper")
"""photographs that come with scikit-learn (the first two) and matplotlib"""


class RestorationBatch(NamedTuple):
    """The measurements of B images, in 0..1."""

    degraded: Tensor
    """(B, C, h, w): the measurements, 0 where there is none"""
    mask: Tensor
    """(B, 1, h, w), 1 where there is a measurement; (B, 1, 1, 1) if there is one everywhere"""
    truth: Tensor
    """(B, C, H, W); without a ground truth (B, 0, H, W)"""


class Repeated(TensorLoader):
    """All images of this rank in one batch, repeated ``times`` in an epoch without copying."""

    def __init__(self, source: RestorationBatch, batch_size: int, times: int) -> None:
        super().__init__(source, batch_size, pin_memory=False)
        self.batch, self.times = source, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[RestorationBatch]:
        first = self._position if self._resumed else 0
        self._resumed = False
        rank, world_size = rank_and_world_size()
        batch = self.batch  # itself, by which the device's copy is found again
        if world_size > 1:
            batch = RestorationBatch(*(tensor[rank::world_size] for tensor in batch))
        for position in range(first, self.times):
            self._position = position + 1
            yield batch


class Restoration(LightningDataModule):
    """Damaged images of one size; a separate network is fitted to each.

    Files are read with all their bits, unless a ``size`` is given. Of a folder, ``x_restored.png`` is left out where
    there is an ``x`` as well. What else is left out, cut off or resized is said.

    The damage is made by ``task``, or is already in the image (``degraded``), which then has no ground truth. An epoch
    is a number of iterations over the same batch, which stays on the device.

    Args:
        image: a file, a folder, one of the photographs ``china``, ``flower`` and ``grace_hopper``, or several of these.
            A path may also be below the data folder, ``LIT_DATA``. In Python also whatever
            :func:`common.pictures.opened` takes, one or several.
        task: what was done to the image; by default :class:`~datamodules.degradations.Denoise` with its defaults.
        degraded: whether the image itself is the measurement.
        size: side in pixels; the shorter side is resized to it and the longer one cropped; ``null`` keeps the image's
            size.
        multiple_of: sides are cropped around the center to multiples of this (and of the task's).
        region: the part of a degraded image to restore: left, top, width and height in pixels; ``null`` for all of it.
            A mask file is of the whole image.
        damage_seed: seed of noise and missing pixels, independent of the run's seed, so that runs restore the same
            image.
        copies: copies of each damaged image in a row, each with its own network, to see how much results vary, and to
            average them.
        batch_size: images per rank, including copies; by default all. Each has one network, so the ranks share them
            evenly.
        iterations_per_epoch: number of iterations after which metrics are logged and the stop is checked.

    Attributes:
        image_shape: (C, H, W) of a restored image.
        num_images: N.
        names, files, originals: of each image; the file of an embedded photograph is None.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: files are broken or unsuitable, names them; images have several sizes; an argument is out of range.
    """

    def __init__(
        self,
        image: str | list[str] = "china",
        task: Task | None = None,
        degraded: bool = False,
        size: int | None = None,
        multiple_of: int = 1,
        damage_seed: int = 0,
        copies: int = 1,
        batch_size: int | None = None,
        iterations_per_epoch: int = 100,
        region: list[int] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, size=size, multiple_of=multiple_of, copies=copies, batch_size=batch_size)
        at_least(1, iterations_per_epoch=iterations_per_epoch)
        self.task = task = task or Denoise()
        self.degraded, self.iterations = degraded, iterations_per_epoch
        opened = open_images(image, size)
        self.names, self.files = [each.name for each in opened], [each.file for each in opened]
        self.originals = [each.original for each in opened]
        if region is None:
            for each in opened:
                self._say_what_becomes_of(each, size)
        multiple = multiple_of if degraded else math.lcm(multiple_of, task.multiple)
        images = [cropped(each.image, multiple, each.name) for each in opened]
        for place, (one, each) in enumerate(zip(images, opened, strict=True)):
            if one.shape[1:] != each.original.values.shape[1:]:  # of another part of it
                self.originals[place] = replace(each.original, alpha=None)
        if len({each.shape for each in images}) > 1:
            listed = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(self.names, images, strict=True))
            raise ValueError(f"images of several sizes or channels: {listed}; expected one, or a 'size' for all")
        self.num_images, self.copies = len(images), copies
        self.batch_size = len(images) * copies if batch_size is None else batch_size

        generators = [keyed_generator(damage_seed, "damage", place) for place in range(len(images))]
        if degraded:
            masks = [task.mask(each.shape, g, degraded=True) for each, g in zip(images, generators, strict=True)]
            if region is not None:
                images, masks = [part(each, region) for each in images], [part(mask, region) for mask in masks]
            elif remark := task.remark(masks[0]):
                rank_zero_info(remark)
            self.image_shape = task.restored_shape(images[0].shape)
            truth = [each.new_empty(0, *self.image_shape[1:]) for each in images]
            made = [(each * mask, mask) for each, mask in zip(images, masks, strict=True)]
        elif region is not None:
            raise ValueError(f"region={region} with degraded=false: expected degraded=true")
        else:
            self.image_shape, truth = list(images[0].shape), images
            made = [task.damage(each, generator) for each, generator in zip(images, generators, strict=True)]
        damaged, known = (torch.stack(each) for each in zip(*made, strict=True))
        if not known.flatten(1).any(1).all():
            raise ValueError(f"{', '.join(self.names)}: no pixel is known, expected a mask that leaves some")
        # A copy is of what was measured: its noise and its missing pixels are the same.
        rows = (tensor.repeat_interleave(copies, 0) for tensor in (damaged, known, torch.stack(truth)))
        self.source = RestorationBatch(*rows)
        self.operator = task.operator(self.image_shape)
        self._on_device: tuple[RestorationBatch, RestorationBatch] | None = None

    def _say_what_becomes_of(self, opened: Opened, size: int | None) -> None:
        """Says what is done to a file of one's own that may not have been meant."""
        if opened.file is None:
            return
        if opened.original.lost:
            rank_zero_info(f"{opened.file}: {opened.original.lost}")
        height, width = opened.original.values.shape[1:]
        if size is not None and (height, width) != (size, size):
            rank_zero_info(
                f"{opened.file}: the middle of its {width}×{height} becomes {size}×{size}; size=null keeps it"
            )
        if not self.degraded:
            rank_zero_info(
                f"{opened.file}: counts as undamaged, and {type(self.task).__name__} damages it; degraded=true takes "
                "it as it is"
            )

    def digest(self) -> str:
        """A fingerprint of what was measured, by which a trained model tells whether it has restored it."""
        told = hashlib.sha256()
        for tensor in self.source[:2]:
            told.update(repr(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
        return told.hexdigest()

    def train_dataloader(self) -> Repeated:
        return self._loader(self.iterations)

    def val_dataloader(self) -> Repeated:
        return self._loader(1)

    test_dataloader = predict_dataloader = val_dataloader

    def _loader(self, times: int) -> Repeated:
        _, world_size = rank_and_world_size()
        count = len(self.source.degraded)
        if self.batch_size * world_size != count:
            fitting = f"{count // world_size}" if count % world_size == 0 else "another image"
            if count < world_size:
                fitting = f"at most {count} ranks"
            counted = f"{count} images" + (f" (copies={self.copies} of each)" if self.copies > 1 else "")
            raise ValueError(
                f"batch_size={self.batch_size} on {world_size} ranks: expected {fitting}, since each of the "
                f"{counted} has its own network on one rank"
            )
        return Repeated(self.source, self.batch_size, times)

    def transfer_batch_to_device(self, batch: RestorationBatch, device: torch.device, dataloader_idx: int) -> Any:
        """Moves the batch if it differs from last time's."""
        if self._on_device is None or any(a is not b for a, b in zip(self._on_device[0], batch, strict=True)):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
            if isinstance(self.operator, nn.Module):
                self.operator.to(device)
            self._on_device = (batch, moved)
        return self._on_device[1]


class Opened(NamedTuple):
    """An image, read."""

    name: str
    file: Path | None
    image: Tensor
    """(C, H, W) in 0..1"""
    original: FullDepth


def open_images(image: Any, size: int | None) -> list[Opened]:
    """The images for the ``image`` of :class:`Restoration`."""
    images: list[Opened] = []
    for each in list(image) if are_several(image) else [image]:
        if not isinstance(each, (str, Path)):
            images.append(read_image(each, f"image {len(images) + 1}", size))
        elif str(each) in EMBEDDED:
            images.append(read_image(embedded_photograph(str(each)), str(each), size))
        else:
            found = images_of(each)
            images += [read_image(f.read_bytes(), str(f), size)._replace(name=f.stem, file=f) for f in found]
    if not images:
        raise ValueError("image=[]: expected at least one")
    return images


def images_of(name: str | Path) -> list[Path]:
    """The image itself, or those of a folder, sorted, without the results of restoring the others."""
    path = existing(str(name))
    if not path.exists():
        raise FileNotFoundError(f"image={name}: no such file or folder{nearest_path(path, *EMBEDDED)}")
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)
    stems = {file.stem for file in found}
    results = [file for file in found if (match := RESULT.fullmatch(file.stem)) and match[1] in stems]
    if results:
        rank_zero_info(f"{path}: {len(results)} restored images are left out, such as {results[0].name}")
    if not found:
        raise ValueError(f"image={name}: no image in this folder, expected {', '.join(EXTENSIONS)}")
    return [file for file in found if file not in results]


RESULT = re.compile(r"(.+)_restored([-_]\d+)?")
"""names, without their endings, of what was restored"""


def embedded_photograph(name: str) -> bytes:
    """The file of one of :data:`EMBEDDED`."""
    if name == "grace_hopper":
        from matplotlib.cbook import get_sample_data

        return Path(get_sample_data("grace_hopper.jpg", asfileobj=False)).read_bytes()
    import sklearn.datasets

    return (Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg").read_bytes()


def read_image(content: Any, name: str, size: int | None = None) -> Opened:
    """An image, or the content of an image file, as :func:`common.full_depth.in_full` reads it; C is 1 if it is gray.

    Of a ``size``, it is resized in 8 bits: see :func:`common.pictures.decode`.

    Raises:
        ValueError: the file cannot be decoded, or is animated; names the file. The image is no picture.
    """
    try:
        found = in_full(content)
        if size is not None and isinstance(content, bytes):
            small = fitted(decode(content).image, (size, size), "crop")
    except ValueError as error:
        raise ValueError(f"{name}: cannot be decoded: {error}" if isinstance(content, bytes) else str(error)) from error
    if found.frames > 1:
        raise ValueError(f"{name}: {found.frames} frames, expected a still image")
    values = torch.from_numpy(found.values)
    if size is not None:
        if not isinstance(content, bytes):
            pixels = (255 * values).round().byte().movedim(0, -1).numpy()
            small = fitted(Image.fromarray(pixels[..., 0] if len(values) == 1 else pixels), (size, size), "crop")
        values = torch.from_numpy(channels_first(small, 1 if small.mode == "L" else 3)).float() / 255
    return Opened(name, None, values, found)


def part(image: Tensor, region: Sequence[int]) -> Tensor:
    """The part of an image (C, H, W) at left, top, width and height; all of a mask that is the same everywhere.

    Raises:
        ValueError: it is not inside.
    """
    left, top, width, height = region if len(region) == 4 else (0, 0, 0, 0)
    if image.shape[1:] == (1, 1):
        return image
    if min(left, top) < 0 or min(width, height) < 1 or left + width > image.shape[2] or top + height > image.shape[1]:
        raise ValueError(
            f"region={list(region)}: expected left, top, width and height within {image.shape[2]}×{image.shape[1]}"
        )
    return image[:, top : top + height, left : left + width].contiguous()


def cropped(image: Tensor, multiple: int, name: str) -> Tensor:
    """The center of an image (C, H, W), with sides that are multiples."""
    height, width = (side // multiple * multiple for side in image.shape[1:])
    if not height or not width:
        raise ValueError(
            f"{name}: {image.shape[2]}×{image.shape[1]} pixels, expected at least {multiple}×{multiple}, since "
            "its sides are cropped to multiples"
        )
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width].contiguous()
