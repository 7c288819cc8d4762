"""Data modules that give the images of another in another form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from common.checks import at_least
from common.pictures import resized
from datamodules.parts.image_loaders import FloatImages
from datamodules.parts.image_sets import ImageBatch, Images, Part
from datamodules.parts.loader import TensorLoader


class WrappedImages(FloatImages):
    """The images of a source in another form; its parts, their labels and their order are the source's.

    Args:
        source: what the images come from; its own batch size is replaced.
        batch_size: images per rank and batch.
        least: that ``batch_size`` may be.

    Attributes:
        image_shape: C, H, W of an image as the model takes it; by default the source's.
        preprocessing: the source's, and its size where the model takes another.
        num_classes, class_names: the source's.

    Raises:
        ValueError: ``batch_size`` is less than that.
    """

    def __init__(self, source: Images, batch_size: int, least: int = 1) -> None:
        super().__init__()
        at_least(least, batch_size=batch_size)
        self.source, self.image_shape = source, list(source.image_shape)
        self.batch_size = source.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        sides = self.source.image_shape[1:]
        return self.source.preprocessing | {"stored": None if sides == self.image_shape[1:] else sides}

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Images.adopt`."""
        return self.source.adopt(facts)

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        self.source.setup(stage)

    def part(self, name: str) -> Part:
        """:meth:`Images.part`."""
        return self.source.part(name)

    def labeled_subset(self, fraction: float) -> Tensor:
        """:meth:`Images.labeled_subset`."""
        return self.source.labeled_subset(fraction)

    def plain_loader(self, part: Literal["train", "val", "test"]) -> TensorLoader:
        """:meth:`Images.plain_loader`: of an :class:`ImageBatch`, as it is stored."""
        return self.source.plain_loader(part)

    @property
    def parts_are_cut(self) -> bool:
        return self.source.parts_are_cut

    @property
    def part_names(self) -> list[str]:
        return self.source.part_names

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """:meth:`Images.sample_names`."""
        return self.source.sample_names(part)

    def plain_batches(self, part: Literal["train", "val", "test"], device: torch.device) -> Iterator[ImageBatch]:
        """:meth:`Images.plain_batches`."""
        for batch in self.plain_loader(part):
            yield self.to_float(move_data_to_device(batch, device))

    def to_float(self, batch: Any) -> Any:
        """:meth:`Images.to_float`, and the images as large as the model takes them."""
        batch = super().to_float(batch)
        return batch._replace(images=resized(batch.images, self.image_shape[1:]))

    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        """:meth:`Images.two_views`."""
        return self.source.two_views(self.to_float(batch))

    def train_dataloader(self) -> TensorLoader:
        return self.source.train_dataloader()

    def val_dataloader(self) -> TensorLoader:
        return self.source.val_dataloader()

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.source.test_dataloader()

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.source.predict_dataloader()
