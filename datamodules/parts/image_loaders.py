"""What data modules of images share: loaders, and the last step on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from common.checks import at_least, one_of
from common.pictures import as_floats
from datamodules.parts.loader import TensorLoader

STAGES = {"train": "fit", "val": "validate", "test": "test"}
"""the stage of a Trainer in which each part is needed"""


class FloatImages(LightningDataModule):
    """Data whose batches have ``images``, which are stored as bytes and reach the model as floats."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images as the model takes them: its own precision; float32 where there is no Trainer."""
        return torch.float32 if self.trainer is None else self.trainer.lightning_module.dtype  # type: ignore[return-value]

    def to_float(self, batch: Any) -> Any:
        """The batch with its images in 0..1, in the model's precision; images that are floats stay as they are."""
        if batch.images.dtype != torch.uint8:
            return batch
        return batch._replace(images=as_floats(batch.images, self.dtype))


class ImageLoaders(FloatImages):
    """Loaders of the parts "train", "val" and "test", whose batches have ``images`` (…, C, H, W).

    Args:
        batch_size: images per rank and batch.

    Raises:
        ValueError: it is less than one.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        self.batch_size = batch_size
        self.order_seed = torch.initial_seed()  # of seed_everything

    def loader(self, part: str, **options: Any) -> TensorLoader:
        """Batches of "train", "val" or "test"; ``options`` are :class:`TensorLoader`'s."""
        raise NotImplementedError

    parts_are_cut = False
    """whether the parts are cut from one whole here"""

    @property
    def part_names(self) -> list[str]:
        """The parts that there are."""
        return list(STAGES)

    def plain_loader(self, part: str) -> TensorLoader:
        """Every sample of a part once over all ranks, in the order of storage and unchanged."""
        one_of(self.part_names, part=part)
        self.setup(STAGES[part])
        return self.loader(part)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """Columns that say which sample each is, in that order."""
        raise NotImplementedError

    def train_dataloader(self) -> TensorLoader:
        return self.loader("train", shuffle=True, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return self.loader("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.loader("test")

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()
