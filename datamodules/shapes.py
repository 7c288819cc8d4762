"""The colored shapes of easy-VQA as labeled images, from PyPI's ``easy-vqa`` package (MIT license)."""

from __future__ import annotations

from typing import Literal

import torch

from common.checks import one_of
from datamodules.easy_vqa import COLORS, SHAPES, attributes, read_images
from datamodules.parts.image_sets import ImageBatch, Images, Part

Label = Literal["shape", "color"]


class Shapes(Images):
    """4,000 and 1,000 images 64×64 of one circle, rectangle or triangle in one of eight colors on a pale background.

    The labels are read from the pixels: a fifth of the images have no question that states them; questions that do
    agree with them. The test images are the official ones.

    Args:
        label: whether the classes are shapes or colors.
        batch_size, root, val_fraction, split_seed, limit: as in :class:`~datamodules.parts.image_sets.Images`.

    Raises:
        ValueError: an unknown label.
    """

    shape = (3, 64, 64)

    def __init__(
        self,
        label: Label = "shape",
        batch_size: int = 128,
        root: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, root, val_fraction, split_seed, limit)
        one_of(Label, label=label)
        self.label = label
        self.class_names = list(SHAPES if label == "shape" else COLORS)

    def read(self) -> dict[str, Part]:
        parts: dict[str, Part] = {}
        for part in ("train", "test"):
            images = read_images(part)
            shown = [pair.split("-")[self.label == "color"] for pair in attributes(images)]
            parts[part] = ImageBatch(images, torch.tensor([self.class_names.index(name) for name in shown]))
        return parts
