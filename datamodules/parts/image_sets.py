"""Images with class labels, held as uint8 in memory or decoded by workers, and made float on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from common.checks import at_least, one_of, within
from common.facts import refuse_unknown
from common.files import data_root
from common.randomness import draws_of_place, keyed_generator
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_files import PARTS, Tree
from datamodules.parts.image_loaders import ImageLoaders
from datamodules.parts.loader import TensorLoader

YARDSTICK = Augmentation(scale=(0.5, 1.0), flip=0.0, grayscale=0.0)
"""the augmentation behind two views whose representations should agree, the same for every technique"""


class ImageBatch(NamedTuple):
    """B images, stored as uint8 in the loader, and float in 0..1 when they reach the model."""

    images: Tensor
    """(B, C, H, W)"""
    labels: Tensor
    """(B,) int64: the class, or -1 if it is unknown"""

    def take(self, rows: Tensor) -> ImageBatch:
        """The images at ``rows``, in that order."""
        return ImageBatch(self.images.index_select(0, rows), self.labels[rows])


def rearrange(rows: np.ndarray, order: Sequence[int]) -> None:
    """Puts the row ``order[i]`` at place i, for all of them and where they are: with memory for one more row."""
    done = [place == source for place, source in enumerate(order)]
    for start in range(len(order)):
        if done[start]:
            continue
        held, place = rows[start].copy(), start
        while not done[place]:
            done[place], source = True, order[place]
            rows[place] = held if source == start else rows[source]
            place = source


class Part(Protocol):
    """The data of a part: an :class:`ImageBatch` of all its images, or a source that forms such batches."""

    @property
    def labels(self) -> Tensor: ...

    def take(self, rows: Tensor) -> Part: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> Any: ...


def divided(part: Part, groups: Sequence[Tensor], in_place: bool) -> list[Part]:
    """The images at each group of rows, in that order.

    Args:
        groups: no row may be in two of them.
        in_place: do not copy images that are in memory, since two copies may not fit into it, unless most of them are
            left out: they are put into this order where they are, and ``part`` is no longer what it was.
    """
    order = torch.cat(list(groups))
    is_held = isinstance(part, ImageBatch) and part.images.is_contiguous()
    if not (in_place and is_held and 2 * len(order) >= len(part.labels)):
        return [part.take(rows) for rows in groups]
    assert isinstance(part, ImageBatch)
    rest = torch.ones(len(part.labels), dtype=torch.bool)
    rest[order] = False
    rearrange(part.images.numpy(), torch.cat([order, rest.nonzero()[:, 0]]).tolist())
    labels, sizes = part.labels[order], [len(rows) for rows in groups]
    pieces = zip(part.images[: len(order)].split(sizes), labels.split(sizes), strict=True)
    return [ImageBatch(*piece) for piece in pieces]


def stratified_order(labels: Tensor, *key: int | str, each_first: bool = False) -> Tensor:
    """A random order of samples (N,) in which every prefix has about the same share of each class.

    A shorter prefix is part of every longer one. The order is a function of ``key``.

    Args:
        labels: (N,) integers.
        each_first: start with one sample of every class.
    """
    shuffled = torch.randperm(len(labels), generator=keyed_generator(*key))
    _, classes, counts = labels[shuffled].unique(return_inverse=True, return_counts=True)
    by_class = classes.argsort(stable=True)
    rank = torch.empty_like(shuffled)  # of each sample among those of its class
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[classes[by_class]]
    place = (rank + 0.5) / counts[classes].double()  # spread evenly over 0..1
    if each_first:
        place[rank == 0] = 0
    return shuffled[place.argsort(stable=True)]


class Images(ImageLoaders):
    """Shared by all sources of images: facts, parts, loaders, and the last step on the device.

    A source sets ``shape`` and ``names``, or ``image_shape`` and ``class_names`` in its constructor, and implements
    :meth:`read`.

    Args:
        batch_size: images per rank and batch.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        val_fraction: share of the labeled training images used for validation, the same for each class; without any
            label, of all. The test images are the source's own.
        split_seed: seed of the validation split, of ``limit`` and of :meth:`labeled_subset`, independent of the run's.
        limit: train on this many images only, each class in proportion; by default on all.

    Attributes:
        image_shape: C, H, W.
        preprocessing: how a picture of any size gets that shape: arguments of :class:`common.pictures.Preprocessing`.
        num_classes, class_names: of the labels, in their order.
        parts: "train", "val" and, if there is one, "test", after ``setup``.
        training_rows: (N,) for the N training images that :meth:`read` returns, the row of each in the training part,
            or -1 if it is used for validation or left out by ``limit``; after ``setup``.
        origins: for each part, the part of :meth:`read` that its images are from, and their rows in it; after
            ``setup``.

    Raises:
        FileNotFoundError: the data do not exist and cannot be downloaded; says where to put them.
        ValueError: an argument is out of range; data are broken.
    """

    shape: ClassVar[tuple[int, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()
    reads_anew: ClassVar[bool] = False
    """whether nobody else holds the images that :meth:`read` returns, so that they may be rearranged"""

    def __init__(
        self,
        batch_size: int = 128,
        root: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size)
        at_least(1, "or null for all", limit=limit)
        within("(0, 1)", val_fraction=val_fraction)
        self.image_shape, self.class_names = list(self.shape), list(self.names)
        self.preprocessing: dict[str, Any] = {"fit": "crop", "stored": None}
        self.root, self.limit = data_root(root), limit
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.parts: dict[str, Part] = {}
        self.training_rows = torch.empty(0, dtype=torch.long)
        self.origins: dict[str, tuple[str, Tensor]] = {}
        self._unsplit: str | None = None  # why there is no validation part
        self._own_names: list[str] | None = None  # of the classes, where they are counted in another order than here

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self) -> dict[str, Part]:
        """The source's own parts: "train", and "val" and "test" if it has them."""
        raise NotImplementedError

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Counts the classes as a checkpoint's model does, if it knows their names.

        A model that knows no names compares these images among themselves, so their classes may be others. What it did
        with pictures of other sizes does not matter to these, which are stored in one size.

        Raises:
            ValueError: there is a class that the model does not know.
        """
        if "class_names" in facts:
            names = list(facts["class_names"])
            refuse_unknown("class_names", self.class_names, names)
            self._own_names, self.class_names = self.class_names, names
        return {"class_names", "num_classes", "preprocessing"}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        parts = self.read()
        if self._own_names is not None:
            parts = {name: renumbered(part, self._own_names, self.class_names) for name, part in parts.items()}
        self.origins = {name: (name, torch.arange(len(part.labels))) for name, part in parts.items()}
        labels = parts["train"].labels
        kept, validating = torch.ones(len(labels), dtype=torch.bool), torch.empty(0, dtype=torch.long)
        if "val" not in parts:
            known = labels >= 0 if (labels >= 0).any() else labels < 0
            pool = known.nonzero()[:, 0]
            num_val = round(len(pool) * self.val_fraction)
            if not 0 < num_val < len(pool):  # a few new pictures can be predicted all the same
                self._unsplit = (
                    f"val_fraction={self.val_fraction}: takes {num_val} of {len(pool)} images, expected a share that "
                    "leaves images in both parts"
                )
                num_val = 0
            order = stratified_order(labels[pool], "val", self.split_seed)
            validating = pool[order[:num_val]].sort().values
            kept[validating] = False
            if num_val:
                self.origins["val"] = ("train", validating)
        training = kept.nonzero()[:, 0]
        if self.limit is not None:
            first = stratified_order(labels[training], "limit", self.split_seed)[: self.limit]
            training = training[first].sort().values
        self.origins["train"] = ("train", training)
        if len(training) < len(labels):
            parts["train"], held_out = divided(parts["train"], [training, validating], self.reads_anew)
            if len(held_out.labels):
                parts.setdefault("val", held_out)
        self.training_rows = torch.full_like(labels, -1)
        self.training_rows[training] = torch.arange(len(training))
        self.parts = {name: parts[name] for name in PARTS if name in parts}

    def table(self, name: str) -> Path:
        """A file that says something about the images, by its path; with files, also by its name in their folder."""
        return Path(name)

    def number_of(self, image: str) -> int:
        """The place among the training images that :meth:`read` returns, before any validate, of one in a table.

        Args:
            image: what the table calls it: its number, from 0 on.

        Raises:
            ValueError: there is no such training image.
        """
        self.setup()
        count = len(self.training_rows)
        if not image.isdecimal() or int(image) >= count:
            raise ValueError(f"no image {image!r}, expected a number from 0 to {count - 1}")
        return int(image)

    def part(self, name: str) -> Part:
        """The images of "train", "val" or "test".

        Raises:
            ValueError: there is no such part.
        """
        self.setup()
        if name == "val" and self._unsplit:
            raise ValueError(self._unsplit)
        one_of(self.parts, part=name)
        return self.parts[name]

    def labeled_subset(self, fraction: float) -> Tensor:
        """Rows of the training part (n,) whose labels may be used, in ascending order.

        Of each class the same share, at least one image; a smaller fraction's rows are among a larger one's. They are
        a function of ``split_seed``.

        Raises:
            ValueError: the fraction is out of range, or the training part has no labels.
        """
        within("(0, 1]", label_fraction=fraction)
        labels = self.part("train").labels
        labeled = (labels >= 0).nonzero()[:, 0]
        if not len(labeled):
            raise ValueError(f"label_fraction={fraction}: no training image has a label")
        count = max(round(len(labeled) * fraction), len(labels[labeled].unique()))
        order = stratified_order(labels[labeled], "labeled", self.split_seed, each_first=True)
        return labeled[order[:count]].sort().values

    def loader(self, part: str, **options: Any) -> TensorLoader:
        return TensorLoader(self.part(part), self.batch_size, **options)

    @property
    def part_names(self) -> list[str]:
        self.setup()
        return list(self.parts)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The number of each image in the data set's own part, and its class."""
        labels = self.part(part).labels.tolist()
        rows = {"row": self.origins[part][1].tolist()}
        return rows | ({"class": [self.class_names[i] if i >= 0 else "" for i in labels]} if max(labels) >= 0 else {})

    def plain_batches(self, part: Literal["train", "val", "test"], device: torch.device) -> Iterator[ImageBatch]:
        """The batches of :meth:`plain_loader` on a device, with images as the model takes them."""
        for batch in self.plain_loader(part):
            yield self.to_float(move_data_to_device(batch, device))

    def val_dataloader(self) -> TensorLoader:
        return self._mixed("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        self.setup()
        return self._mixed("test") if "test" in self.parts else []

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        """The test images in storage order, which is that of :meth:`sample_names`."""
        self.setup()
        return self.loader("test") if "test" in self.parts else []

    def _mixed(self, part: str) -> TensorLoader:
        """A part's images for evaluation, where those that are stored by class come in a fixed order of all classes.

        Else batches would be of one class each: the first one, which pictures show, and those of contrastive losses.
        """
        loader, labels = self.loader(part), self.part(part).labels
        if (labels.diff() < 0).any():
            return loader
        return loader.in_order(stratified_order(labels, "evaluated", part, self.split_seed))

    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        """Two views of each image by :data:`YARDSTICK`, as two batches; draws depend only on the place in it."""
        dtype = self.dtype if batch.images.dtype == torch.uint8 else batch.images.dtype
        draws = draws_of_place(len(batch.images), 2 * Augmentation.num_draws, "two views")
        first, second = (YARDSTICK(batch.images, each, dtype) for each in draws.chunk(2, 1))
        return batch._replace(images=first), batch._replace(images=second)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        found: ImageBatch = self.to_float(batch)
        return found


def renumbered(part: Part, names: Sequence[str], wanted: Sequence[str]) -> Part:
    """A part whose labels count ``wanted`` instead of ``names``, which are among them."""
    codes = torch.tensor([wanted.index(name) for name in names] or [-1])
    labels = torch.where(part.labels >= 0, codes[part.labels.clamp_min(0)], -1)
    if isinstance(part, ImageBatch):
        return part._replace(labels=labels)
    part.labels = labels  # type: ignore[misc]
    return part


def parts_of(tree: Tree, images: np.ndarray, whole: np.ndarray) -> dict[str, Part]:
    """The decoded images (N, C, H, W) of each part of a tree, without those that are not ``whole``, (N,) bool."""
    kept = [torch.from_numpy(rows[whole[rows]]) for rows in tree.parts.values()]
    everything = ImageBatch(torch.from_numpy(images), torch.from_numpy(tree.labels))
    return dict(zip(tree.parts, divided(everything, kept, in_place=True), strict=True))
