"""What data modules of images share: loaders, the last step on the device, and wrapping one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from common.checks import at_least
from datamodules.parts.loader import TensorLoader

if TYPE_CHECKING:
    from datamodules.images import ImageBatch, Images, Part


class ImageLoaders(LightningDataModule):
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

    def train_dataloader(self) -> TensorLoader:
        return self.loader("train", shuffle=True, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return self.loader("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.loader("test")

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()

    def to_float(self, batch: Any) -> Any:
        """The batch with its images in 0..1, in the model's precision; what is float already stays as it is."""
        if batch.images.dtype != torch.uint8:
            return batch
        dtype = torch.float if self.trainer is None else self.trainer.lightning_module.dtype
        # Channels last is the faster layout for convolutions, on CPUs and on GPUs.
        return batch._replace(images=batch.images.to(dtype, memory_format=torch.channels_last).div_(255))


class WrappedImages(LightningDataModule):
    """The images of a source in another form; its parts, their labels and their order are the source's.

    Args:
        source: what the images come from; its own batch size is replaced.
        batch_size: images per rank and batch.
        least: that ``batch_size`` may be.

    Attributes:
        num_classes, class_names: the source's.

    Raises:
        ValueError: ``batch_size`` is less than that.
    """

    def __init__(self, source: Images, batch_size: int, least: int = 1) -> None:
        super().__init__()
        at_least(least, batch_size=batch_size)
        self.source = source
        self.batch_size = source.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        self.source.setup(stage)

    def part(self, name: str) -> Part:
        """:meth:`Images.part`"""
        return self.source.part(name)

    def labeled_subset(self, fraction: float) -> Tensor:
        """:meth:`Images.labeled_subset`"""
        return self.source.labeled_subset(fraction)

    def plain_loader(self, part: Literal["train", "val", "test"]) -> TensorLoader:
        """:meth:`Images.plain_loader`: of an :class:`ImageBatch`, as it is stored."""
        return self.source.plain_loader(part)

    def to_float(self, batch: Any) -> Any:
        """:meth:`Images.to_float`"""
        self.source.trainer = self.trainer
        return self.source.to_float(batch)

    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        """:meth:`Images.two_views`"""
        return self.source.two_views(self.to_float(batch))

    def train_dataloader(self) -> TensorLoader:
        return self.source.train_dataloader()

    def val_dataloader(self) -> TensorLoader:
        return self.source.val_dataloader()

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.source.test_dataloader()

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()
