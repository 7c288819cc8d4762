"""One or several damaged images, repeated as long as networks are fitted to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from common.checks import at_least
from common.distributed import rank_and_world_size
from common.files import existing, nearest_path
from common.pictures import EXTENSIONS, channels_first, decode, fitted
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

    The damage is made by ``task``, or is already in the image (``degraded``), which then has no ground truth. An epoch
    is a number of iterations over the same batch, which stays on the device.

    Args:
        image: a file, a folder, one of the photographs ``china``, ``flower`` and ``grace_hopper``, or several of these.
            A path may also be below the data folder, ``LIT_DATA``. In Python also a tensor (N, C, H, W) in 0..1.
        task: what was done to the image; by default :class:`~datamodules.degradations.Denoise` with its defaults.
        degraded: whether the image itself is the measurement.
        size: side in pixels; the shorter side is resized to it and the longer one cropped; ``null`` keeps the image's
            size.
        multiple_of: sides are cropped around the center to multiples of this (and of the task's).
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
        names, files: of each image; the file of an embedded photograph is None.

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
    ) -> None:
        super().__init__()
        at_least(1, size=size, multiple_of=multiple_of, copies=copies, batch_size=batch_size)
        at_least(1, iterations_per_epoch=iterations_per_epoch)
        self.task = task = task or Denoise()
        self.degraded, self.iterations = degraded, iterations_per_epoch
        self.names, self.files, images = open_images(image, size)
        multiple = multiple_of if degraded else math.lcm(multiple_of, task.multiple)
        images = [cropped(each, multiple, name) for each, name in zip(images, self.names, strict=True)]
        if len({each.shape for each in images}) > 1:
            listed = ", ".join(f"{name} {tuple(each.shape)}" for name, each in zip(self.names, images, strict=True))
            raise ValueError(f"images of several sizes or channels: {listed}; expected one, or a 'size' for all")
        self.num_images, self.copies = len(images), copies
        self.batch_size = len(images) * copies if batch_size is None else batch_size

        generators = [keyed_generator(damage_seed, "damage", place) for place in range(len(images))]
        if degraded:
            self.image_shape = task.restored_shape(images[0].shape)
            truth = [each.new_empty(0, *self.image_shape[1:]) for each in images]
            masks = [task.mask(each.shape, g, degraded=True) for each, g in zip(images, generators, strict=True)]
            made = [(each * mask, mask) for each, mask in zip(images, masks, strict=True)]
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


def open_images(image: Any, size: int | None) -> tuple[list[str], list[Path | None], list[Tensor]]:
    """Names, files and images (C, H, W) in 0..1 for the ``image`` of :class:`Restoration`."""
    if isinstance(image, Tensor):
        if image.dim() != 4 or image.shape[1] not in (1, 3) or 0 in image.shape:
            raise ValueError(f"image of shape {tuple(image.shape)}: expected (N, C, H, W) with 1 or 3 channels")
        if not bool(((image >= 0) & (image <= 1)).all()):  # so NaN too
            raise ValueError("image with values outside 0..1 (or NaN): expected 0..1")
        return [f"image {i + 1}" for i in range(len(image))], [None] * len(image), list(image)
    names: list[str] = []
    files: list[Path | None] = []
    images: list[Tensor] = []
    for each in [image] if isinstance(image, str) else image:
        if each in EMBEDDED:
            names, files = [*names, each], [*files, None]
            images.append(read_image(embedded_photograph(each), each, size))
            continue
        path = existing(each)
        if not path.exists():
            raise FileNotFoundError(f"image={each}: no such file or folder{nearest_path(path, *EMBEDDED)}")
        found = sorted(f for f in path.iterdir() if f.suffix.lower() in EXTENSIONS) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"image={each}: no image in this folder, expected {', '.join(EXTENSIONS)}")
        for file in found:
            names, files = [*names, file.stem], [*files, file]
            images.append(read_image(file.read_bytes(), str(file), size))
    if not images:
        raise ValueError("image=[]: expected at least one")
    return names, files, images


def embedded_photograph(name: str) -> bytes:
    """The file of one of :data:`EMBEDDED`."""
    if name == "grace_hopper":
        from matplotlib.cbook import get_sample_data

        return Path(get_sample_data("grace_hopper.jpg", asfileobj=False)).read_bytes()
    import sklearn.datasets

    return (Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg").read_bytes()


def read_image(content: bytes, name: str, size: int | None = None) -> Tensor:
    """An image file as (C, H, W) in 0..1; C is 1 if it is gray, else 3.

    See :func:`common.pictures.decode`.

    Raises:
        ValueError: the file cannot be decoded, or is animated; names the file.
    """
    try:
        found = decode(content)
    except ValueError as error:
        raise ValueError(f"{name}: cannot be decoded: {error}") from error
    if found.frames > 1:
        raise ValueError(f"{name}: {found.frames} frames, expected a still image")
    image = found.image if size is None else fitted(found.image, (size, size), "crop")
    return torch.from_numpy(channels_first(image, 1 if image.mode == "L" else 3)).float() / 255


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
