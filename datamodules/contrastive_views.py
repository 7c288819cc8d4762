"""Several augmented views of each image of any source, for contrastive learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from common.checks import at_least
from common.randomness import draws_of_place
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_sets import ImageBatch, Images
from datamodules.parts.loader import TensorLoader, training_draws
from datamodules.parts.wrapped_images import WrappedImages


class ViewBatch(NamedTuple):
    """V views and V′ small views of each of B images, in 0..1 and the model's precision."""

    images: Tensor
    """(B, C, S, S) in evaluation, as large as the views; in training (B, C, H, W) uint8, as they are stored"""
    labels: Tensor
    """(B,) int64: the class, or -1 if it is unknown"""
    views: Tensor
    """(V, B, C, S, S)"""
    small: Tensor
    """(V′, B, C, s, s); V′ is 0 without multi-crop"""


class ContrastiveViews(WrappedImages):
    """Batches of augmented views, made on the device, with independent draws for every view of every image.

    In training the draws are a function of (seed, epoch, batch, place in the global batch); in evaluation of the place
    alone, so that all epochs, runs and numbers of ranks see the same views. The parts, their labels and their order are
    those of the source.

    Args:
        source: the source of the images; its own batch size is replaced.
        batch_size: images per rank and batch; the network sees ``views`` times as many.
        views: number of views of each image.
        small_views: number of additional smaller views (multi-crop: Caron et al. 2020).
        small_size: their side in pixels.
        small_scale: range of their crop's share of the area.
        size: side of a view in pixels; by default the source's shorter side.
        augmentation: how a view is made; its ``size`` is this ``size``.
        label_fraction: if below 1, train only on this share of the labeled images, equal for each class: those of
            :meth:`labeled_subset`.

    Attributes:
        image_shape: C, size, size of a view.
        preprocessing: the source's, and its size where views have another.
        num_classes, class_names: those of the source.
        num_training_images: number of images that training goes through in an epoch.

    Raises:
        ValueError: an argument is out of range, or ``small_views`` and ``small_size`` do not go together.
    """

    def __init__(
        self,
        source: Images,
        batch_size: int = 256,
        views: int = 2,
        small_views: int = 0,
        small_size: int | None = None,
        small_scale: tuple[float, float] = (0.05, 0.25),
        size: int | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 - it is frozen
        label_fraction: float = 1.0,
    ) -> None:
        super().__init__(source, batch_size)
        at_least(1, views=views)
        at_least(0, small_views=small_views)
        if small_views and small_size is None:
            raise ValueError(f"small_size=null with small_views={small_views}: expected the side in pixels")
        if small_size is not None and not small_views:
            raise ValueError(f"small_size={small_size} with small_views=0: expected null")
        if size is not None and augmentation.size not in (None, size):
            raise ValueError(f"augmentation.size={augmentation.size}: expected size={size}, or null")
        channels, *sides = source.image_shape
        self.views, self.small_views, self.label_fraction = views, small_views, label_fraction
        side = size or augmentation.size or min(sides)
        self.augmentation = replace(augmentation, size=side)
        self.small_augmentation = replace(augmentation, size=small_size or 1, scale=small_scale)
        self.image_shape = [channels, side, side]

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Images.adopt`, where a view has the size that it had for the model."""
        channels, *size = facts.get("image_shape", self.image_shape)
        stored = (facts.get("preprocessing") or self.preprocessing)["stored"] or size
        settled = super().adopt({**facts, "image_shape": [channels, *stored]}) - {"image_shape"}
        if self.source.image_shape == [channels, *stored]:
            self.augmentation = replace(self.augmentation, size=size[0])
            self.image_shape = [channels, *size]
            settled.add("image_shape")
        return settled

    @property
    def num_training_images(self) -> int:
        if self.label_fraction != 1:
            return len(self.labeled_subset(self.label_fraction))
        return len(self.part("train").labels)

    def train_dataloader(self) -> TensorLoader:
        loader = super().train_dataloader()
        if self.label_fraction != 1:
            loader = loader.over(self.part("train").take(self.labeled_subset(self.label_fraction)))
        return loader

    def val_dataloader(self) -> TensorLoader:
        return self._evaluated(super().val_dataloader())

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        loader = super().test_dataloader()
        return self._evaluated(loader) if isinstance(loader, TensorLoader) else loader

    def _evaluated(self, loader: TensorLoader) -> TensorLoader:
        """In full batches where images have several views: a contrastive loss depends on the number of negatives."""
        return loader.in_full_batches() if self.views + self.small_views > 1 else loader

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ViewBatch:
        count, each = len(batch.images), Augmentation.num_draws
        num_draws = (self.views + self.small_views) * each
        if self.trainer is not None and self.trainer.training:
            draws = training_draws(self.trainer, count, num_draws, self.source.order_seed)
            images = batch.images  # nothing looks at them
        else:
            draws = draws_of_place(count, num_draws, "views")
            images = self.to_float(batch).images
        for_views, for_small = draws.split([self.views * each, self.small_views * each], 1)
        return ViewBatch(
            images=images,
            labels=batch.labels,
            views=self._augmented(batch.images, for_views, self.augmentation),
            small=self._augmented(batch.images, for_small, self.small_augmentation),
        )

    def _augmented(self, images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
        """(B, C, H, W) and draws (B, V · num_draws) → (V, B, C, S, S)."""
        count, each = len(images), augmentation.num_draws
        views = draws.shape[1] // each
        # All views in one go, of which each sample's row holds the draws of all of its own.
        draws = draws.view(count, views, each).transpose(0, 1).reshape(-1, each)
        output: Tensor = augmentation(images.repeat(views, 1, 1, 1), draws, self.dtype).unflatten(0, (views, count))
        return output
