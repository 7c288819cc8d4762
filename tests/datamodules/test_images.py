"""Images: their parts, loaders and labels; data sets of torchvision; class folders and archives, whole and broken."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torchvision import datasets

from common.files import write_whole
from common.pictures import Preprocessing, channels_first, decode
from datamodules import image_tree
from datamodules.image_tree import ImageTree
from datamodules.images import CIFAR10, CIFAR100, MNIST, STL10, Digits, FashionMNIST
from datamodules.parts import archives, decoding, image_files
from datamodules.parts.image_files import Tree
from datamodules.parts.image_sets import ImageBatch, Images, stratified_order
from datamodules.parts.loader import WorkerLoader, checksum
from tests.conftest import DATA

Ranks = Callable[[int, int], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))
    return tmp_path / "cache" / "lit-baselines"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def pixels(seed: int, height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, height: int = 10, width: int = 12) -> bytes:
    return encoded(Image.fromarray(pixels(seed, height, width)))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


FLAT = {f"{name}/{i}.png": png(10 * code + i) for code, name in enumerate(("ape", "bee", "cat")) for i in range(8)}
PARTED = {f"train/{name}": content for name, content in FLAT.items()}
PARTED |= {f"test/{name}": content for name, content in FLAT.items() if name.endswith(("0.png", "1.png"))}


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], links: Iterable[tuple[str, bytes]] = ()) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


WRITERS = {"tree": write_folder, "tree.zip": write_zip, "tree.tar": write_tar, "tree.tar.gz": write_tar}


def error_of(make: Callable[[], Any]) -> str:
    def call() -> None:
        made = make()
        if isinstance(made, Images):
            made.setup()
            made.val_dataloader()

    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings_of(make: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(warning.message) for warning in caught]


def ids(images: Tensor) -> list[int]:
    return [checksum([image]) for image in images]


# The order that every split is a beginning of.


def test_beginnings_of_a_stratified_order_have_every_class_in_its_share() -> None:
    counts = torch.tensor([1, 7, 40, 100, 352])
    labels = torch.arange(5).repeat_interleave(counts)[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    order = stratified_order(labels, "a", 0)
    assert order.sort().values.tolist() == list(range(500))
    for size in range(1, 501):
        found = labels[order[:size]].bincount(minlength=5)
        assert ((found - counts * size / 500).abs() < 1.5).all(), size
    first = stratified_order(labels, "a", 0, each_first=True)
    assert first.sort().values.tolist() == list(range(500))
    assert sorted(labels[first[:5]].tolist()) == [0, 1, 2, 3, 4]
    for size in range(5, 501):
        assert ((labels[first[:size]].bincount(minlength=5) - counts * size / 500).abs() <= 5).all(), size


def test_stratified_order_is_a_function_of_its_key_and_random_within_and_across_classes() -> None:
    labels = torch.arange(10).repeat(100)
    state = torch.get_rng_state()
    orders = [stratified_order(labels, "a", seed) for seed in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(orders[1], stratified_order(labels, "a", 1))
    assert len({tuple(order.tolist()) for order in orders}) == 3
    # Where classes are equally large, which one comes first is drawn as well.
    assert len({tuple(labels[orders[0][10 * i : 10 * i + 10]].tolist()) for i in range(20)}) > 10


# What every source shares, on scikit-learn's digits.


def test_digits_hold_what_scikit_learn_holds_in_disjoint_and_complete_parts() -> None:
    from sklearn.datasets import load_digits

    digits = Digits()
    assert (digits.image_shape, digits.num_classes, digits.batch_size) == ([1, 8, 8], 10, 128)
    assert digits.class_names == list("0123456789")
    assert not digits.parts  # facts are there before the images are
    digits.setup()
    assert {name: len(part.labels) for name, part in digits.parts.items()} == {"train": 1294, "val": 144, "test": 359}
    found = torch.cat([part.images for part in digits.parts.values()])
    labels = torch.cat([part.labels for part in digits.parts.values()])
    source = load_digits()
    assert found.dtype == torch.uint8
    assert labels.dtype == torch.int64
    expected = sorted(zip((source.images * 255 / 16).round().tolist(), source.target.tolist(), strict=True))
    assert sorted(zip(found[:, 0].float().tolist(), labels.tolist(), strict=True)) == expected
    for part in digits.parts.values():
        share = part.labels.bincount() / len(part.labels)
        assert ((share - labels.bincount() / 1797).abs() < 1 / len(part.labels)).all()


def test_split_depends_on_split_seed_alone_and_the_test_part_on_nothing() -> None:
    def parts(seed: int, **options: Any) -> dict[str, list[int]]:
        torch.manual_seed(seed)
        digits = Digits(**options)
        digits.setup()
        return {name: ids(part.images) for name, part in digits.parts.items()}

    one, other, third = parts(0), parts(1), parts(0, split_seed=1)
    assert one == other
    assert one["test"] == third["test"]
    assert one["val"] != third["val"]
    larger = parts(0, val_fraction=0.3)
    assert set(one["val"]) < set(larger["val"])
    assert larger["test"] == one["test"]


def test_limit_takes_a_share_of_each_class_of_the_training_part_only() -> None:
    whole, limited = Digits(), Digits(limit=100)
    assert set(ids(limited.part("train").images)) < set(ids(whole.part("train").images))
    assert len(limited.part("train").labels) == 100
    assert set(limited.part("train").labels.bincount().tolist()) <= {9, 10, 11}
    for name in ("val", "test"):
        assert torch.equal(limited.part(name).images, whole.part(name).images)
    assert len(Digits(limit=5000).part("train").labels) == 1294
    whole, limited = Digits(split_seed=1), Digits(limit=100, split_seed=1)
    rows = stratified_order(whole.part("train").labels, "limit", 1)[:100].sort().values
    assert torch.equal(limited.part("train").images, whole.part("train").images[rows])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"val_fraction": 0.0}, "val_fraction=0.0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_fraction": 1e-5}, "val_fraction=1e-05: takes 0 of 1438"),
        ({"val_fraction": 1 - 1e-5}, "1438 of 1438"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    assert message in error_of(lambda: Digits(**options))


def test_a_part_that_is_not_there_is_named() -> None:
    assert "part='valid': expected 'train', 'val' or 'test'; did you mean 'val'?" in error_of(
        lambda: Digits().part("valid")
    )


def test_labeled_subsets_are_stratified_nested_seeded_and_have_every_class() -> None:
    digits = Digits()
    labels = digits.part("train").labels
    before: set[int] = set()
    for fraction in (0.001, 0.01, 0.05, 0.1, 0.5, 1.0):
        rows = digits.labeled_subset(fraction)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert len(rows) == max(10, round(1294 * fraction))
        counts = labels[rows].bincount(minlength=10)
        assert counts.min() >= 1
        assert ((counts - labels.bincount() * fraction).abs() < 2.5).all()
        assert before <= set(rows.tolist())
        before = set(rows.tolist())
    torch.manual_seed(123)
    assert torch.equal(Digits().labeled_subset(0.1), digits.labeled_subset(0.1))
    assert not torch.equal(Digits(split_seed=1).labeled_subset(0.1), digits.labeled_subset(0.1))
    for fraction in (0.0, -0.1, 1.1):
        assert f"label_fraction={fraction}" in error_of(lambda fraction=fraction: digits.labeled_subset(fraction))


class Halves(Images):
    """40 images, of which only the even ones have a label."""

    shape, names = (1, 2, 2), ("a", "b")

    def __init__(self, labeled: bool = True) -> None:
        super().__init__(batch_size=4)
        self.labeled = labeled

    def read(self) -> dict[str, Any]:
        labels = torch.tensor([0, -1, 1, -1] * 10) if self.labeled else torch.full((40,), -1)
        batch = ImageBatch(torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), labels)
        return {"train": batch, **({} if self.labeled else {"val": batch})}


def test_unlabeled_images_train_only_and_are_never_asked_for_labels() -> None:
    halves = Halves()
    assert halves.part("val").labels.bincount().tolist() == [1, 1]
    labels = halves.part("train").labels
    assert (labels == -1).sum() == 20
    assert len(labels) == 38
    assert labels[halves.labeled_subset(1.0)].bincount().tolist() == [9, 9]
    assert halves.test_dataloader() == []
    assert "part='test': expected 'train' or 'val'" in error_of(lambda: halves.plain_loader("test"))
    assert "no training image has a label" in error_of(lambda: Halves(labeled=False).labeled_subset(0.5))


def test_plain_loaders_give_every_image_once_in_order_over_any_ranks(be_rank: Ranks) -> None:
    digits = Digits(batch_size=50)
    for name in ("train", "val", "test"):
        part = digits.part(name)
        for world_size in (1, 2, 3):
            rows: list[list[int]] = []
            for rank in range(world_size):
                be_rank(rank, world_size)
                batches = list(digits.plain_loader(name))
                assert all(batch.images.dtype == torch.uint8 for batch in batches)
                rows.append([i for batch in batches for i in ids(batch.images)])
                labels = torch.cat([batch.labels for batch in batches])
                assert torch.equal(labels, part.labels[rank::world_size])
            assert rows == [ids(part.images)[rank::world_size] for rank in range(world_size)]


def test_training_is_shuffled_whole_batches_and_goes_on_where_it_stopped(be_rank: Ranks) -> None:
    torch.manual_seed(5)
    digits = Digits(batch_size=100)
    loader = digits.train_dataloader()
    loader.set_epoch(1)
    batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [100] * 12
    assert ids(batches[0].images) != ids(digits.part("train").images[:100])
    begun = digits.train_dataloader()
    begun.set_epoch(1)
    iterator = iter(begun)
    for _ in range(5):
        next(iterator)
    resumed = Digits(batch_size=100).train_dataloader()
    resumed.set_epoch(1)
    resumed.load_state_dict(begun.state_dict())
    rest = list(resumed)
    assert len(rest) == 7
    for one, other in zip(rest, batches[5:], strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    be_rank(1, 2)
    half = Digits(batch_size=50).train_dataloader()
    half.set_epoch(1)
    for one, other in zip(half, batches, strict=True):
        assert torch.equal(one.images, other.images[1::2])
    torch.manual_seed(6)
    other_order = Digits(batch_size=50).train_dataloader()
    other_order.set_epoch(1)
    assert not torch.equal(next(iter(other_order)).images, next(iter(half)).images)


def test_fingerprint_tells_other_data() -> None:
    def fingerprint(**options: Any) -> int | None:
        return Digits(**options).train_dataloader().fingerprint()

    assert fingerprint() == fingerprint(batch_size=7)
    assert len({fingerprint(), fingerprint(split_seed=1), fingerprint(limit=700)}) == 3


def test_images_become_float_once_in_the_models_precision() -> None:
    digits = Digits(batch_size=3)
    batch = ImageBatch(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), torch.arange(3))
    for made in (digits.to_float(batch), digits.on_after_batch_transfer(batch, 0)):
        assert type(made) is ImageBatch
        assert made.images.dtype == torch.float
        assert torch.allclose(made.images.flatten(), torch.tensor([0.0, 0.2, 1.0]), rtol=0, atol=1e-7)
        assert torch.equal(made.labels, batch.labels)
        assert digits.to_float(made) is made
    assert batch.images.flatten().tolist() == [0, 51, 255]
    digits.trainer = SimpleNamespace(lightning_module=SimpleNamespace(dtype=torch.float64))  # type: ignore[assignment]
    assert digits.to_float(batch).images.dtype == torch.float64
    colored = ImageBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2))
    assert digits.to_float(colored).images.is_contiguous(memory_format=torch.channels_last)


class Seen(LightningModule):
    """Keeps the ranges and labels of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.highest: dict[str, float] = {}
        self.count = {"train": 0, "val": 0, "test": 0}

    def _see(self, part: str, batch: ImageBatch) -> Tensor:
        assert batch.images.dtype == torch.float
        self.highest[part] = max(self.highest.get(part, 0.0), float(batch.images.max()))
        self.count[part] += len(batch.labels)
        return self.weight * batch.images.mean()

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        return self._see("train", batch)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._see("val", batch)

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self._see("test", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


def test_a_trainer_goes_through_all_parts() -> None:
    seen, trainer = Seen(), Trainer(**QUIET)
    digits = Digits(batch_size=50)
    trainer.fit(seen, digits)
    trainer.test(seen, digits, verbose=False)
    assert seen.count == {"train": 1250, "val": 144, "test": 359}
    assert seen.highest == {"train": 1.0, "val": 1.0, "test": 1.0}


# Data sets of torchvision.


@pytest.mark.skipif(not (DATA / "MNIST" / "raw").exists(), reason=f"no MNIST in {DATA}")
def test_mnist_is_the_official_one(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    monkeypatch.setenv("LIT_DATA", str(DATA))
    mnist = MNIST()
    mnist.prepare_data()
    train, val, test = (mnist.part(name) for name in ("train", "val", "test"))
    assert (train.images.shape, val.images.shape, test.images.shape) == (
        (54000, 1, 28, 28),
        (6000, 1, 28, 28),
        (10000, 1, 28, 28),
    )
    assert mnist.image_shape == [1, 28, 28]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.cat([train.labels, val.labels]).bincount().tolist() == counts
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Mean and deviation of the training images that everybody normalizes by.
    values = torch.cat([train.images, val.images]).double().div(255)
    assert (round(float(values.mean()), 4), round(float(values.std()), 4)) == (0.1307, 0.3081)
    raw = (DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert checksum([test.images]) == zlib.crc32(raw)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar10_images.zip").exists(), reason=f"no cifar10_images.zip in {DATA}")
def test_cifar10_is_read_from_its_jpeg_copy(monkeypatch: pytest.MonkeyPatch, offline: None) -> None:
    monkeypatch.setenv("LIT_DATA", str(DATA))
    monkeypatch.setattr(decoding, "CACHE_SECONDS", float("inf"))
    cifar = CIFAR10()
    cifar.prepare_data()
    assert cifar.part("train").labels.bincount().tolist() == [4500] * 10
    assert cifar.part("val").labels.bincount().tolist() == [500] * 10
    assert cifar.part("test").labels.bincount().tolist() == [1000] * 10
    with zipfile.ZipFile(DATA / "cifar10_images.zip") as archive:
        for name, row in (
            ("test/airplane/0000.jpg", 0),
            ("test/automobile/0000.jpg", 1000),
            ("test/truck/0999.jpg", -1),
        ):
            expected = torch.from_numpy(np.array(Image.open(io.BytesIO(archive.read(name))))).permute(2, 0, 1)
            assert torch.equal(cifar.part("test").images[row], expected)
    # JPEG moves pixels and keeps averages: these are the official images' (0.4914, 0.4822, 0.4465).
    images = torch.cat([cifar.part("train").images, cifar.part("val").images])
    means = images.sum((0, 2, 3), dtype=torch.int64) / (255 * 50000 * 1024)
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=2e-4)


def write_mnist(raw: Path) -> None:
    """Files of MNIST's form: images of ones, with a label that is the number of the image modulo 10."""
    raw.mkdir(parents=True)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.ones((count, 28, 28), np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())


def test_fashion_mnist_has_a_folder_of_its_own_and_its_own_names(tmp_path: Path, offline: None) -> None:
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    write_mnist(raw)
    fashion = FashionMNIST()
    fashion.prepare_data()
    assert fashion.part("train").labels.bincount().tolist() == [5400] * 10
    assert fashion.part("test").images.shape == (10000, 1, 28, 28)
    assert fashion.class_names == datasets.FashionMNIST.classes
    file = raw / "train-images-idx3-ubyte"
    with file.open("r+b") as opened:
        opened.truncate(1000)
    for broken in (FashionMNIST().prepare_data, FashionMNIST().setup):
        message = error_of(broken)
        assert message == f"{file}: 1000 bytes, expected 47040016; delete it to unpack it again"


@pytest.mark.parametrize(
    ("make", "place", "address"),
    [
        (MNIST, "MNIST/raw", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        (FashionMNIST, "FashionMNIST/raw", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
        (CIFAR10, "", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
        (CIFAR100, "", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
        (STL10, "", "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
    ],
)
def test_what_is_not_there_and_cannot_be_downloaded_is_named(
    make: type[Images], place: str, address: str, tmp_path: Path, offline: None
) -> None:
    images = make(root=str(tmp_path / "elsewhere"))
    assert (len(images.class_names), len(images.image_shape)) == (images.num_classes, 3)  # facts need no data
    for reason, call in (("no network", images.prepare_data), ("prepare_data downloads it", images.setup)):
        message = error_of(call)
        assert message.startswith(f"{tmp_path / 'elsewhere' / place}: {make.__name__} is missing or incomplete; put")
        assert address in message
        assert reason in message


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, fine: bool) -> np.ndarray:
    """Files of CIFAR's form; returns the training images (N, 3, 32, 32)."""
    import pickle

    folder.mkdir(parents=True)
    made = datasets.CIFAR100 if fine else datasets.CIFAR10
    labels, images = "fine_labels" if fine else "labels", []
    for seed, (name, _) in enumerate([*made.train_list, *made.test_list]):
        data = np.random.default_rng(seed).integers(0, 256, (200, 3072), dtype=np.uint8)
        content = {"data": data, labels: [i % (100 if fine else 10) for i in range(200)]}
        (folder / name).write_bytes(pickle.dumps(content))
        images.append(data.reshape(-1, 3, 32, 32))
    names = list((CIFAR100 if fine else CIFAR10).names)
    (folder / made.meta["filename"]).write_bytes(pickle.dumps({made.meta["key"]: names}))
    for parts in ("train_list", "test_list"):
        monkeypatch.setattr(made, parts, [[name, None] for name, _ in getattr(made, parts)])
    monkeypatch.setattr(made, "meta", made.meta | {"md5": None})
    return np.concatenate(images[:-1])


@pytest.mark.parametrize("fine", [False, True])
def test_cifars_own_files_win_over_the_jpeg_copy(
    fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    folder = tmp_path / "data" / ("cifar-100-python" if fine else "cifar-10-batches-py")
    expected = write_cifar(folder, monkeypatch, fine)
    (tmp_path / "data" / "cifar10_images.zip").write_bytes(b"of no interest")
    cifar = CIFAR100() if fine else CIFAR10()
    cifar.prepare_data()
    cifar.setup()
    assert cifar.num_classes == (100 if fine else 10)
    assert sorted(ids(torch.from_numpy(expected))) == sorted(
        ids(torch.cat([cifar.part(name).images for name in ("train", "val")]))
    )
    assert cifar.part("test").labels.tolist() == [i % cifar.num_classes for i in range(200)]


def test_class_names_of_cifar100_are_in_their_official_order() -> None:
    names = list(CIFAR100.names)
    assert len(names) == 100
    assert names == sorted(names)
    # Codes that the official files are known by.
    assert [names.index(name) for name in ("apple", "dinosaur", "mushroom", "rocket", "train", "worm")] == [
        *(0, 29, 51, 69, 90, 99)
    ]


def test_a_jpeg_copy_that_is_another_archive_is_refused(tmp_path: Path, offline: None) -> None:
    (tmp_path / "data").mkdir()
    write_zip(tmp_path / "data" / "cifar10_images.zip", PARTED)
    assert "expected train and test with the ten classes of CIFAR-10" in error_of(CIFAR10)


@pytest.mark.parametrize(
    ("train_on", "labels", "validating"),
    [("train", [0] + [45] * 10, 50), ("train+unlabeled", [300] + [45] * 10, 50), ("unlabeled", [300] + [0] * 10, 500)],
)
def test_stl10_trains_on_labeled_and_unlabeled_images(
    train_on: Any, labels: list[int], validating: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: None
) -> None:
    folder = tmp_path / "data" / "stl10_binary"
    folder.mkdir(parents=True)
    images = {}
    for seed, (name, count) in enumerate((("train", 500), ("test", 200), ("unlabeled", 300))):
        images[name] = np.random.default_rng(seed).integers(0, 256, (count, 3, 1, 1), dtype=np.uint8)
        images[name] = np.broadcast_to(images[name], (count, 3, 96, 96)).copy()
        images[name][:, 0, 2, 5] = 255  # row 2, column 5; the files hold columns
        images[name].transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    monkeypatch.setattr(datasets.STL10, "train_list", [[name, None] for name, _ in datasets.STL10.train_list])
    monkeypatch.setattr(datasets.STL10, "test_list", [[name, None] for name, _ in datasets.STL10.test_list])
    stl = STL10(train_on=train_on)
    stl.prepare_data()
    found = stl.part("train").labels
    assert found.dtype == torch.int64
    assert (found + 1).bincount(minlength=11).tolist() == labels
    assert stl.part("val").labels.bincount().tolist() == [validating // 10] * 10
    assert torch.equal(stl.part("test").images, torch.from_numpy(images["test"]))
    assert stl.part("test").labels.tolist() == [i % 10 for i in range(200)]


def test_stl10_refuses_another_part() -> None:
    assert "train_on='test': expected 'train', 'train+unlabeled' or 'unlabeled'" in error_of(
        lambda: STL10(train_on="test")  # type: ignore[arg-type]
    )


# Class folders, and archives of them.


@pytest.mark.parametrize("files", [FLAT, PARTED], ids=["flat", "parted"])
@pytest.mark.parametrize("wrapper", ["", "wrapper/data/"])
def test_folder_and_archives_are_equal_bit_for_bit(files: dict[str, bytes], wrapper: str, tmp_path: Path) -> None:
    files = dict(sorted({wrapper + name: content for name, content in files.items()}.items(), reverse=True))
    made = []
    for name, write in WRITERS.items():
        tree = ImageTree(str(write(tmp_path / name, files)))
        tree.setup()
        assert tree.class_names == ["ape", "bee", "cat"]
        assert tree.image_shape == [3, 10, 12]
        made.append(tree.parts)
    for parts in made:
        assert list(parts) == ["train", "val", "test"]
        for name, part in parts.items():
            assert torch.equal(part.images, made[0][name].images)
            assert torch.equal(part.labels, made[0][name].labels)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == sorted(WRITERS)  # none unpacked
    code = {name: code for code, name in enumerate(("ape", "bee", "cat"))}
    whole = {
        (
            checksum([torch.from_numpy(np.array(Image.open(io.BytesIO(content))).transpose(2, 0, 1).copy())]),
            code[folder],
        )
        for name, content in files.items()
        for folder in [name.split("/")[-2]]
        if "test/" not in name
    }
    there = {
        pair
        for name in ("train", "val", *(["test"] if files.keys() & {f"{wrapper}ape/0.png"} else []))
        for pair in zip(ids(made[0][name].images), made[0][name].labels.tolist(), strict=True)
    }
    assert there == whole
    if f"{wrapper}test/ape/0.png" in files:
        assert made[0]["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert torch.equal(made[0]["test"].images[2], torch.from_numpy(pixels(10).transpose(2, 0, 1)))


def test_a_tree_with_a_part_of_its_own_keeps_it_and_one_without_has_one_carved(tmp_path: Path) -> None:
    files = PARTED | {name.replace("train/", "val/"): png(77) for name in PARTED if name.startswith("train/ape/")}
    caught = warnings_of(lambda: ImageTree(str(write_folder(tmp_path / "three", files))).setup())
    assert [line for line in caught if "val has no images of 2 of 3 classes: bee, cat" in line]
    tree = ImageTree(str(tmp_path / "three"))
    assert [len(tree.part(name).labels) for name in ("train", "val", "test")] == [24, 8, 6]
    flat = ImageTree(str(write_folder(tmp_path / "flat", FLAT)), test_fraction=0.25, val_fraction=0.2)
    assert flat.part("test").labels.bincount().tolist() == [2, 2, 2]
    assert len(flat.part("val").labels) == 4
    seen = [i for name in ("train", "val", "test") for i in ids(flat.part(name).images)]
    assert len(seen) == len(set(seen)) == 24
    none = ImageTree(str(tmp_path / "flat"), test_fraction=0.0)
    none.setup()
    assert list(none.parts) == ["train", "val"]
    train_only = {name: content for name, content in PARTED.items() if name.startswith("train")}
    assert ImageTree(str(write_folder(tmp_path / "train_only", train_only))).test_dataloader() == []


def test_a_relative_path_is_also_looked_for_in_root(tmp_path: Path) -> None:
    write_folder(tmp_path / "data" / "flat", FLAT)
    assert ImageTree("flat").num_classes == 3
    (tmp_path / "flash").mkdir()
    message = error_of(lambda: ImageTree("flas"))
    assert message.startswith("flas: no such folder, .zip or .tar")
    assert "did you mean 'flash'?" in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b"hello"}, "tree: no image in it, expected files that end in .jpg"),
        (PARTED | {"train/stray.png": png(0)}, "or labels=none to take all 31 pictures without classes"),
        (FLAT | {"stray.png": png(0)}, "stray.png: no class folder, expected <class>/stray.png"),
        (PARTED | {"train/stray.png": png(0)}, "stray.png: no class folder, expected <class>/stray.png"),
        (PARTED | {"test/dog/0.png": png(0)}, "test/dog/0.png: no class 'dog' in training, but ape, bee, cat"),
        ({f"test/{name}": content for name, content in FLAT.items()}, "tree: found test but no folder 'train'"),
    ],
)
def test_trees_of_another_form_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    assert message in error_of(lambda: ImageTree(str(write_folder(tmp_path / "tree", files))))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    for name, files in (("flat", FLAT), ("parted", PARTED)):
        folder = write_folder(tmp_path / name, files)
        empty = folder / "dog" if name == "flat" else folder / "train" / "dog"
        empty.mkdir()
        assert error_of(lambda folder=folder: ImageTree(str(folder))) == f"{empty}: no image in this class folder"
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for member, content in FLAT.items():
            archive.writestr(member, content)
        archive.writestr("dog/", b"")
    assert error_of(lambda: ImageTree(str(tmp_path / "flat.zip"))).endswith("member dog: no image in this class folder")


def test_a_class_that_is_missing_in_test_is_told_and_other_files_are_counted(tmp_path: Path) -> None:
    files = {name: content for name, content in PARTED.items() if not name.startswith("test/bee")}
    files |= {"train/ape/notes.txt": b"x", "train/ape/.DS_Store": b"x", "README.md": b"x"}
    files |= {"__MACOSX/train/._x.png": b"x"}
    folder = write_folder(tmp_path / "tree", files)
    caught = warnings_of(lambda: ImageTree(str(folder)))
    assert [line for line in caught if line == f"{folder}: test has no images of 1 of 3 classes: bee"]
    tree = ImageTree(str(folder))
    assert tree.part("test").labels.unique().tolist() == [0, 2]
    assert tree.found() == (
        "28 pictures of 3 classes (ape, bee, cat); 22 train, 2 val, 4 test; "
        "2 files skipped that are no pictures (.md, .txt)"
    )
    assert tree.num_classes == 3


def test_folders_that_link_to_one_above_end(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tree", FLAT)
    (folder / "ape" / "again").symlink_to(folder)
    write_folder(tmp_path / "elsewhere", {"0.png": png(50)})
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    tree = ImageTree(str(folder))
    assert tree.class_names == ["ape", "bee", "cat", "dog"]
    assert len(tree.tree.names) == 25


def test_a_folder_with_two_names_is_there_twice(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tree", FLAT)
    for name in ("aardvark", "zebra"):
        (folder / name).symlink_to(folder / "bee")
    tree = ImageTree(str(folder)).tree
    assert tree.class_names == ["aardvark", "ape", "bee", "cat", "zebra"]
    assert (tree.labels == 0).sum() == (tree.labels == 2).sum() == (tree.labels == 4).sum() > 0


# Sizes and modes.


def decode_image(content: bytes, size: int | None = None, grayscale: bool = False) -> np.ndarray:
    image, channels = decode(content).image, 1 if grayscale else 3
    return Preprocessing((channels, size, size)).pixels(image) if size else channels_first(image, channels)


def test_images_are_resized_to_their_shorter_side_and_cropped_to_the_center() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    for image in (wide, wide.transpose(1, 0, 2)):
        made = decode_image(encoded(Image.fromarray(image)), 10)
        height, width = image.shape[:2]
        resized = Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.BILINEAR)
        expected = np.array(resized)[(height - 20) // 4 :, (width - 20) // 4 :][:10, :10]
        assert np.array_equal(made, expected.transpose(2, 0, 1))
        assert (made[:, 2:-2, 2:-2] == np.array([0, 255, 0])[:, None, None]).all()
    board = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255  # antialiased, a fine board is an even gray
    made = decode_image(encoded(Image.fromarray(board)), 16)
    assert (abs(made.astype(int) - 127) <= 2).all()
    assert decode_image(png(3), None).tolist() == pixels(3).transpose(2, 0, 1).tolist()
    assert decode_image(encoded(Image.fromarray(board)), 64).tolist() == np.stack([board] * 3).tolist()
    assert decode_image(png(3), None, grayscale=True).shape == (1, 10, 12)


def test_odd_modes_become_rgb() -> None:
    def color(image: Image.Image, kind: str = "PNG", **options: Any) -> list[int]:
        made = decode_image(encoded(image, kind, **options))
        assert made.dtype == np.uint8
        assert made.shape == (3, 4, 5)
        return made[:, 1, 1].tolist()

    size = (5, 4)
    assert color(Image.new("RGB", size, (10, 20, 30))) == [10, 20, 30]
    assert color(Image.new("L", size, 77)) == [77] * 3
    assert color(Image.new("1", size, 1)) == [255] * 3
    assert color(Image.new("LA", size, (100, 255))) == [100] * 3
    assert color(Image.new("LA", size, (100, 0))) == [255] * 3  # over white
    assert color(Image.new("RGBA", size, (0, 100, 200, 255))) == [0, 100, 200]
    assert color(Image.new("RGBA", size, (0, 0, 0, 51))) == [204] * 3
    palette = Image.new("RGB", size, (200, 100, 0)).quantize(4)
    assert palette.mode == "P"
    assert color(palette) == [200, 100, 0]
    transparent = Image.new("P", size, 0)
    transparent.putpalette([9, 9, 9, 200, 0, 0])
    assert color(transparent, transparency=0) == [255] * 3
    assert color(transparent, "GIF") == [9] * 3
    for value, expected in ((0, 0), (128, 0), (129, 1), (257 * 100, 100), (65535, 255)):  # 16 bits, not cut off at 255
        assert color(Image.fromarray(np.full((4, 5), value, np.uint16))) == [expected] * 3
        assert color(Image.fromarray(np.full((4, 5), value, np.uint16)), "TIFF") == [expected] * 3
        assert color(Image.fromarray(np.full((4, 5), value, np.int32)), "TIFF") == [expected] * 3
    cmyk = color(Image.new("CMYK", size, (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(np.array(cmyk) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((4, 5), 70_000, np.int32)), "integers in 70000..70000: expected 0..65535"),
        (Image.fromarray(np.full((4, 5), 2.5, np.float32)), "values in 2.5..2.5: expected floats in 0..1"),
    ],
)
def test_modes_without_a_scale_are_refused(image: Image.Image, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_image(encoded(image, "TIFF"))


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tree", FLAT | {"bee/odd.png": png(3, 7, 9)})
    message = error_of(lambda: ImageTree(str(folder)))
    # Which of the two sizes is met first is the folder's matter.
    assert "9×7 pixels" in message
    assert "12×10" in message
    assert message.endswith("expected one size, or a 'size' for all")
    tree = ImageTree(str(folder), size=8)
    assert tree.image_shape == [3, 8, 8]
    assert tree.part("train").images.shape[1:] == (3, 8, 8)
    gray = ImageTree(str(folder), size=8, grayscale=True)
    assert gray.image_shape == [1, 8, 8]
    assert gray.part("train").images.shape[1:] == (1, 8, 8)


# Broken images.

JPEG = encoded(Image.fromarray(pixels(0, 40, 40)), "JPEG")
BROKEN = {
    "empty": b"",
    "not_an_image": b"this is no image\n" * 20,
    "truncated_jpeg": JPEG[: len(JPEG) // 2],
    "truncated_png": png(1, 40, 40)[:-600],
    "header_only": png(0)[:20],
    "no_pixels": png(0)[:16] + b"\0\0\0\0" + png(0)[20:],
}


@pytest.mark.parametrize("kind", list(BROKEN))
@pytest.mark.parametrize("where", ["tree", "tree.zip", "tree.tar"])
def test_broken_images_are_named_or_skipped(kind: str, where: str, tmp_path: Path) -> None:
    path = WRITERS[where](tmp_path / where, FLAT | {"bee/broken.png": BROKEN[kind]})
    name = f"{path}/bee/broken.png" if where == "tree" else f"{path}: member bee/broken.png"
    message = error_of(lambda: ImageTree(str(path), size=8))
    assert message.startswith(f"{name}: cannot be decoded: ")
    reasons = {"empty": "the file is empty", "not_an_image": "TIFF, PPM"}
    assert message.endswith(reasons.get(kind, ""))
    caught = warnings_of(lambda: ImageTree(str(path), size=8, broken="skip", test_fraction=0.0).setup())
    assert [line for line in caught if line.startswith(f"{path}: left out 1 broken images, the first: {name}")]
    tree = ImageTree(str(path), size=8, broken="skip", test_fraction=0.0)
    whole = ImageTree(str(write_zip(tmp_path / "whole.zip", FLAT)), size=8, test_fraction=0.0)
    for part in ("train", "val"):
        assert torch.equal(tree.part(part).images, whole.part(part).images)
        assert torch.equal(tree.part(part).labels, whole.part(part).labels)


def test_size_is_taken_from_the_first_whole_image(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", FLAT | {"ape/!.png": b""})
    assert ImageTree(str(path), broken="skip").image_shape == [3, 10, 12]
    assert "ape/!.png: cannot be decoded: the file is empty" in error_of(lambda: ImageTree(str(path)))
    path = write_folder(tmp_path / "all", dict.fromkeys(FLAT, b""))
    assert "all 24 images are broken" in error_of(lambda: ImageTree(str(path), broken="skip"))
    assert "all 24 images are broken, the first" in error_of(lambda: ImageTree(str(path), broken="skip", size=4))


def test_a_class_of_which_every_image_is_broken_is_named(tmp_path: Path) -> None:
    files = FLAT | {name: b"" for name in FLAT if name.startswith("bee")}
    path = write_folder(tmp_path / "tree", files)
    assert "every training image of bee is broken" in error_of(lambda: ImageTree(str(path), size=4, broken="skip"))


def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tree.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FLAT.items():
            archive.writestr(name, content)
        offset = archive.getinfo("cat/3.png").header_offset
    content = bytearray(path.read_bytes())
    content[offset + 200] ^= 255
    path.write_bytes(content)
    assert "member cat/3.png: cannot be decoded: Bad CRC-32" in error_of(lambda: ImageTree(str(path)))


def test_folders_of_a_zip_from_windows_are_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name, content in {"ape\\": b"", **FLAT}.items():
            archive.writestr(name.replace("/", "\\"), content)
    tree, same = ImageTree(str(tmp_path / "tree.zip")), ImageTree(str(write_folder(tmp_path / "tree", FLAT)))
    assert tree.tree.names == same.tree.names
    assert tree.class_names == same.class_names
    assert tree.found() == same.found()
    assert torch.equal(tree.part("train").images, same.part("train").images)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tree", FLAT)
    os.mkfifo(folder / "ape" / "pipe.png")
    message = error_of(lambda: ImageTree(str(folder), size=4))
    assert message == f"{folder}/ape/pipe.png: cannot be decoded: a pipe or a device, expected a file"
    assert len(ImageTree(str(folder), size=4, broken="skip").part("train")) > 0


# Archives that are broken or mean harm.


def zip_with(path: Path, member: zipfile.ZipInfo | str, content: bytes = b"x") -> Path:
    write_zip(path, FLAT)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, content)
    return path


@pytest.mark.parametrize(
    "name", ["../escape.png", "ape/../../escape.png", "/tmp/escape.png", "ape\\..\\..\\escape.png"]
)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_members_that_lead_out_of_the_archive_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"tree.{kind}"
    (zip_with(path, name) if kind == "zip" else write_tar(path, FLAT | {name: png(0)}))
    message = error_of(lambda: ImageTree(str(path)))
    assert message == f"{path}: member {name}: its name leads out of the archive's folder"


def test_drives_are_refused_too(tmp_path: Path) -> None:
    message = error_of(lambda: ImageTree(str(zip_with(tmp_path / "tree.zip", "C:/escape.png"))))
    assert message.endswith("member C:/escape.png: its name leads out of the archive's folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tree.tar", FLAT, [("ape/link.png", kind)])
    message = error_of(lambda: ImageTree(str(path)))
    assert message == f"{path}: member ape/link.png: a link or a device, expected only files and folders"


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo("ape/link.png")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    path = zip_with(tmp_path / "tree.zip", member, b"/etc/passwd")
    message = error_of(lambda: ImageTree(str(path)))
    assert message == f"{path}: member ape/link.png: a link or a device, expected only files and folders"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_there_twice_or_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_with(tmp_path / "twice.zip", "ape/0.png", png(9))
    assert "member ape/0.png: occurs twice, expected once" in error_of(lambda: ImageTree(str(path)))
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 5000)
    for path in (
        zip_with(tmp_path / "large.zip", "ape/large.png", bytes(10_000)),
        write_tar(tmp_path / "large.tar.gz", FLAT | {"ape/large.png": bytes(10_000)}),
    ):
        message = error_of(lambda path=path: ImageTree(str(path)))
        assert message == f"{path}: member ape/large.png: 10000 bytes, expected at most 5000"


def test_an_image_of_absurd_size_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = write_folder(tmp_path / "tree", FLAT)
    assert "cannot be decoded: Image size (120 pixels) exceeds limit" in error_of(lambda: ImageTree(str(path), size=4))


@pytest.mark.parametrize("name", ["tree.zip", "tree.tar", "tree.tar.gz"])
def test_truncated_archives_and_other_files_are_refused(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, {f"{key}/{n}": content for key in FLAT for n, content in [("x.png", JPEG)]})
    content = path.read_bytes()
    for broken in (
        content[: len(content) // 2],
        b"nothing of the kind" * 100,
        b"",
        content[:-9] if "gz" in name else b"x",
    ):
        path.write_bytes(broken)
        message = error_of(lambda: ImageTree(str(path)))
        assert message.startswith(f"{path}: neither a complete .zip nor a complete .tar: ")
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(b"nothing of the kind" * 100))
        assert "neither a complete .zip nor a complete .tar" in error_of(lambda: ImageTree(str(path)))


def test_a_tar_that_ends_early_is_refused_wherever_it_was_cut_or_damaged(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "tree.tar", FLAT)
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        header, end = archive.getmember("bee/3.png").offset, archive.offset
    damaged = bytearray(content)
    damaged[header + 5] ^= 1
    for broken in (content[:header], content[: header + 100], content[: header + 600], content[:end], damaged):
        path.write_bytes(broken)
        assert f"{path}: neither a complete .zip nor a complete .tar: " in error_of(lambda: ImageTree(str(path)))
    path.write_bytes(content[: end + 512])
    assert ImageTree(str(path)).num_classes == 3


# Decoded images on disk.


@pytest.mark.parametrize("where", ["tree", "tree.zip"])
def test_cached_images_are_those_decoded(
    where: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FLAT | {"bee/broken.png": b""}
    path = WRITERS[where](tmp_path / where, files)
    decoded = ImageTree(str(path), broken="skip")
    decoded.setup()
    assert not cache.exists()  # quick ones are not kept
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    for _ in range(2):
        tree = ImageTree(str(path), broken="skip")
        assert [line for line in warnings_of(tree.setup) if "left out 1 broken images" in line]
        for name, part in tree.parts.items():
            assert torch.equal(part.images, decoded.parts[name].images)
            assert torch.equal(part.labels, decoded.parts[name].labels)
        assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".npy"]
        monkeypatch.setattr(image_files, "decode", decode_only_the_first(decode))
    (kept,) = cache.glob("*.npy")
    assert np.load(kept).shape == (25, 3, 10, 12)
    assert len(json.loads(kept.with_suffix(".json").read_text())) == 1


def decode_only_the_first(decode: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """For the size of the images; a second call fails."""
    calls: list[int] = []

    def once(*args: Any) -> np.ndarray:
        calls.append(1)
        assert len(calls) == 1
        return decode(*args)

    return once


def test_other_files_and_options_are_decoded_anew(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    path = write_folder(tmp_path / "tree", FLAT)
    for options in ({}, {"size": 8}, {"size": 8, "grayscale": True}, {"size": 8, "broken": "skip"}):
        ImageTree(str(path), **options).setup()
    assert len(list(cache.glob("*.npy"))) == 4
    file = path / "ape" / "0.png"
    status = file.stat()
    file.write_bytes(png(99))  # as large as before, or almost
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    tree = ImageTree(str(path), test_fraction=0.0, val_fraction=0.2)
    expected = checksum([torch.from_numpy(pixels(99).transpose(2, 0, 1).copy())])
    assert expected in [i for name in ("train", "val") for i in ids(tree.part(name).images)]
    assert len(list(cache.glob("*.npy"))) == 5


def test_an_interrupted_decoding_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "CACHE_SECONDS", -1)
    path = write_folder(tmp_path / "tree", FLAT | {"cat/9.png": b""})
    error_of(lambda: ImageTree(str(path)))
    assert not cache.exists()

    def half(pieces: Any) -> Any:
        yield pieces[0]
        raise OSError(28, "No space left on device")

    def on_a_full_disk(file: Path, pieces: Any) -> None:
        write_whole(file, half(pieces) if file.suffix == ".npy" else pieces)

    monkeypatch.setattr(decoding, "write_whole", on_a_full_disk)
    tree = ImageTree(str(path), broken="skip")
    (line,) = [line for line in warnings_of(tree.setup) if "not kept" in line]
    assert line.startswith(
        f"{path}: what was decoded is not kept and will be decoded again next time ({cache}: No space"
    )
    assert len(tree.part("train").labels) == 20
    assert [file.suffix for file in cache.iterdir()] == [".json"]


# Trees too large for memory.


def test_a_tree_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(tmp_path / "tree", FLAT)
    needed = 24 * 3 * 8 * 8
    monkeypatch.setattr(image_tree, "memory_limit", lambda: 4 * needed // 3)
    tree = ImageTree(str(path), size=8)
    monkeypatch.setattr(image_tree, "memory_limit", lambda: 4 * needed // 3 - 2)
    assert " MB when decoded, expected at most " in error_of(lambda: ImageTree(str(path), size=8))
    monkeypatch.setattr(image_tree, "memory_limit", lambda: 2 * 2**30)
    monkeypatch.setattr(tree.tree, "names", ["x.png"] * (2**31 // 192))
    message = error_of(lambda: tree._refuse_too_large(2))
    assert "4.0 GB when decoded in 2 processes, expected at most 1.5 GB of 2.0 GB of memory; use num_w" in message
    monkeypatch.setattr(image_tree, "memory_limit", lambda: 2)
    ImageTree(str(path), size=8, num_workers=1)


@pytest.mark.parametrize("where", ["tree", "tree.zip", "tree.tar"])
def test_workers_form_the_batches_that_memory_would(where: str, tmp_path: Path, be_rank: Ranks) -> None:
    path = WRITERS[where](tmp_path / where, FLAT)
    options: dict[str, Any] = {"size": 8, "batch_size": 4, "limit": 15}
    memory, workers = ImageTree(str(path), **options), ImageTree(str(path), num_workers=2, **options)
    for rank, world_size in ((0, 1), (1, 2)):
        be_rank(rank, world_size)
        for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
            here, there = getattr(memory, name)(), getattr(workers, name)()
            assert isinstance(there, WorkerLoader)
            pairs = list(zip(here, there, strict=True))
            assert pairs
            for one, other in pairs:
                assert type(other) is ImageBatch
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.labels, other.labels)
    be_rank(0, 1)
    assert torch.equal(memory.labeled_subset(0.2), workers.labeled_subset(0.2))
    begun = workers.train_dataloader()
    next(iterator := iter(begun))
    del iterator
    resumed = workers.train_dataloader()
    resumed.load_state_dict(begun.state_dict())
    for one, other in zip(list(memory.train_dataloader())[1:], resumed, strict=True):
        assert torch.equal(one.images, other.images)


def test_an_archive_that_was_opened_before_the_workers_is_not_shared_with_them(tmp_path: Path) -> None:
    for name in ("tree.zip", "tree.tar"):
        tree = ImageTree(str(WRITERS[name](tmp_path / name, FLAT)), size=10, batch_size=2, num_workers=3)
        tree.tree.decode(0, tree.form)  # opens it here
        images = torch.cat([batch.images for batch in tree.plain_loader("train")])
        expected = [torch.from_numpy(tree.tree.decode(row, tree.form)) for row in tree.part("train").rows.tolist()]
        assert torch.equal(images, torch.stack(expected))


def test_a_broken_image_is_named_by_a_worker_in_one_line(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "tree", PARTED | {"test/bee/broken.jpg": JPEG[:300]})
    named = f"{path}/test/bee/broken.jpg: cannot be decoded: "
    tree = ImageTree(str(path), size=8, num_workers=1, check=False)
    assert error_of(lambda: list(tree.test_dataloader())).startswith(named)
    checked = ImageTree(str(path), size=8, num_workers=1)
    assert error_of(checked.setup).startswith(named), "before the first step"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tree", {"num_workers": 1}, "num_workers=1: expected a 'size'"),
        (
            "tree",
            {"num_workers": 1, "size": 8, "broken": "skip", "check": False},
            "broken='skip' with check=false and num_workers=1: expected check=true",
        ),
        ("tree.tar.gz", {"num_workers": 1, "size": 8}, "an uncompressed .tar, not tree.tar.gz"),
        ("tree", {"num_workers": -1}, "num_workers=-1"),
        ("tree", {"size": 0}, "size=0"),
        ("tree", {"broken": "ignore"}, "broken='ignore'"),
        ("tree", {"test_fraction": 1.0}, "test_fraction=1.0"),
    ],
)
def test_options_of_a_tree_that_do_not_go_together_are_named(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = WRITERS[name](tmp_path / name, FLAT)
    assert message in error_of(lambda: ImageTree(str(path), **options))


def test_fingerprint_of_worker_fed_images_tells_other_files_sizes_and_choices(tmp_path: Path) -> None:
    def fingerprint(files: dict[str, bytes], **options: Any) -> int | None:
        path = write_zip(tmp_path / "tree.zip", files)
        return ImageTree(str(path), **{"size": 8, "num_workers": 1, **options}).train_dataloader().fingerprint()

    assert fingerprint(FLAT, batch_size=5) == fingerprint(FLAT, batch_size=5)
    others = [
        fingerprint(FLAT, batch_size=5),
        fingerprint(FLAT | {"ape/0.png": png(1) + b"."}, batch_size=5),
        fingerprint({name.replace("0", "9"): content for name, content in FLAT.items()}, batch_size=5),
        fingerprint(FLAT, batch_size=5, size=9),
        fingerprint(FLAT, batch_size=5, grayscale=True),
        fingerprint(FLAT, batch_size=5, split_seed=1),
        fingerprint(FLAT, batch_size=5, limit=15),
    ]
    assert len(set(others)) == len(others)


def test_a_tree_can_be_sent_to_a_process_that_is_spawned(tmp_path: Path) -> None:
    import pickle

    tree = Tree(write_zip(tmp_path / "tree.zip", FLAT))
    expected = tree.decode(5, 3)
    assert np.array_equal(pickle.loads(pickle.dumps(tree)).decode(5, 3), expected)
