"""Views of any source of images: their draws in training and evaluation, over ranks, and what is left to the source."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from datamodules.contrastive_views import ContrastiveViews, ViewBatch
from datamodules.easy_vqa import COLORS, SHAPES, _read_questions, read_images
from datamodules.image_tree import ImageTree
from datamodules.images import Digits
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_sets import ImageBatch
from datamodules.parts.loader import WorkerLoader
from datamodules.shapes import Shapes
from experiments.callbacks.representation_probe import RepresentationProbe
from experiments.cli import build

Ranks = Callable[[int, int], None]


def digits(**options: Any) -> ContrastiveViews:
    torch.manual_seed(0)
    return ContrastiveViews(Digits(), **{"batch_size": 16} | options)


def at(data: ContrastiveViews, epoch: int, batch: int, training: bool = True, dtype: Any = torch.float32) -> None:
    """Puts the data in a trainer that prepares that batch."""
    trainer: Any = SimpleNamespace(
        training=training,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(batch_idx=batch - 1),
        lightning_module=SimpleNamespace(dtype=dtype),
    )
    data.trainer = trainer


def first_batch(data: ContrastiveViews) -> ImageBatch:
    data.setup()
    return next(iter(data.train_dataloader()))


class Watcher(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.seen: dict[str, list[ViewBatch]] = {"train": [], "val": [], "test": []}

    def encode(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))

    def training_step(self, batch: ViewBatch, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        return self.encode(batch.views.flatten(0, 1)).square().mean()

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: ViewBatch, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer_of(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "num_sanity_val_steps": 0} | options,
    )


# Draws.


def test_batches_hold_views_small_views_and_the_images() -> None:
    data = digits(views=3, small_views=2, small_size=5, size=12)
    batch = first_batch(data)
    views = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(views.labels, batch.labels)
    assert views.views.shape == (3, 16, 1, 12, 12)
    assert views.small.shape == (2, 16, 1, 5, 5)
    assert data.image_shape == [1, 12, 12]
    assert data.augmentation.scale == (0.08, 1.0)
    assert data.small_augmentation.scale == (0.05, 0.25)
    for made in (views.views, views.small):
        assert made.dtype == torch.float32
        assert 0 <= made.min() <= made.max() <= 1
        assert made.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        flat = made.flatten(0, 1).flatten(1)
        assert len(flat.unique(dim=0)) == len(flat)
    without = digits()
    assert without.on_after_batch_transfer(batch, 0).small.shape[:2] == (0, 16)
    assert without.on_after_batch_transfer(batch, 0).views.shape == (2, 16, 1, 8, 8)


def test_one_image_many_times_has_as_many_views() -> None:
    data = digits(augmentation=Augmentation(jitter_probability=1.0))
    batch = first_batch(data)
    batch = ImageBatch(batch.images[:1].repeat(100, 1, 1, 1), batch.labels[:1].repeat(100))
    for training in (True, False):
        at(data, 0, 0, training)
        made = data.on_after_batch_transfer(batch, 0).views.flatten(0, 1).flatten(1)
        assert len(made.unique(dim=0)) == 200


def test_views_are_a_function_of_seed_epoch_and_batch() -> None:
    made: dict[tuple[int, int, int], Tensor] = {}
    batch = first_batch(digits())
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = ContrastiveViews(Digits(), 16)
        for epoch in (0, 1):
            for step in (0, 1):
                at(data, epoch, step)
                torch.rand(seed + step)
                state = torch.get_rng_state()
                made[seed, epoch, step] = data.on_after_batch_transfer(batch, 0).views
                assert torch.equal(torch.get_rng_state(), state)
                assert torch.equal(data.on_after_batch_transfer(batch, 0).views, made[seed, epoch, step])
    assert len({views.sum().item() for views in made.values()}) == 8


def test_evaluation_always_sees_the_same_views() -> None:
    batch = first_batch(digits())
    expected = digits().on_after_batch_transfer(batch, 0).views
    for seed, epoch, step in ((0, 0, 0), (0, 3, 2), (1, 0, 0)):
        torch.manual_seed(seed)
        data = ContrastiveViews(Digits(), 16)
        at(data, epoch, step, training=False)
        assert torch.equal(data.on_after_batch_transfer(batch, 0).views, expected)


@pytest.mark.parametrize(("training", "num_views"), [(True, 2), (False, 2), (False, 1)])
def test_two_ranks_see_what_one_does(training: bool, num_views: int, be_rank: Ranks) -> None:
    def views(rank: int, world_size: int) -> list[ViewBatch]:
        be_rank(rank, world_size)
        data = digits(
            batch_size=20 // world_size,
            views=num_views,
            small_views=num_views - 1,
            small_size=4 if num_views > 1 else None,
        )
        data.setup()
        made = []
        for i, batch in enumerate(data.train_dataloader() if training else data.val_dataloader()):
            at(data, 1, i, training)
            made.append(data.on_after_batch_transfer(batch, 0))
        return made

    whole, halves = views(0, 1), (views(0, 2), views(1, 2))
    assert len(whole) == len(halves[0]) == len(halves[1])
    assert len(whole[-1].images) == (20 if num_views > 1 else len(digits().part("val").labels) % 20)
    for one, *two in zip(whole, *halves, strict=True):
        for rank, half in enumerate(two):
            assert torch.equal(half.labels, one.labels[rank::2])
            assert torch.allclose(half.views, one.views[:, rank::2], atol=1e-6)
            assert torch.allclose(half.small, one.small[:, rank::2], atol=1e-6)


def test_evaluation_on_two_ranks_of_fewer_images_than_a_batch(be_rank: Ranks) -> None:
    for world_size in (1, 2):
        be_rank(0, world_size)
        data = digits(batch_size=1000)
        data.setup()
        (batch,) = data.val_dataloader()
        assert len(batch.labels) == len(data.part("val").labels) // world_size


def test_images_are_evaluated_in_the_size_of_the_views() -> None:
    data = digits(size=6)
    batch = first_batch(data)
    for shown in (data.to_float(batch).images, data.on_after_batch_transfer(batch, 0).images):
        assert list(shown.shape[1:]) == data.image_shape == [1, 6, 6]
        torch.testing.assert_close(shown.mean(), batch.images.float().mean() / 255, atol=0.02, rtol=0)
    at(data, 0, 0)
    assert data.on_after_batch_transfer(batch, 0).images is batch.images, "no work in training, where nobody looks"


def test_views_have_the_precision_of_the_module() -> None:
    data = digits()
    batch = first_batch(data)
    for dtype in (torch.bfloat16, torch.float64):
        at(data, 0, 0, dtype=dtype)
        assert data.on_after_batch_transfer(batch, 0).views.dtype == dtype
        assert data.to_float(batch).images.dtype == dtype
        assert data.two_views(batch)[0].images.dtype == dtype
    data.trainer = None
    assert data.to_float(batch).images.dtype == torch.float32


def test_two_views_are_batches_and_always_the_same() -> None:
    data = digits()
    batch = first_batch(data)
    first, second = data.two_views(batch)
    assert torch.equal(first.labels, batch.labels)
    assert first.images.shape == second.images.shape == (16, 1, 8, 8)
    assert not torch.equal(first.images, second.images)
    torch.rand(3)
    again = data.two_views(data.to_float(batch))
    for one, other in zip((first, second), again, strict=True):
        assert torch.allclose(one.images, other.images, atol=1e-5)


# In a training.


def test_a_training_sees_new_views_each_epoch_and_validates_on_the_same(tmp_path: Path) -> None:
    module, data = Watcher(), digits(batch_size=256)
    probe = RepresentationProbe(every_n_epochs=1, k=5)
    trainer = trainer_of(tmp_path, callbacks=[probe])
    trainer.fit(module, datamodule=data)
    assert {"val/alignment", "val/knn_accuracy"} <= trainer.callback_metrics.keys()
    assert 0 < trainer.callback_metrics["val/alignment"] < 4
    per_epoch = len(data.part("train").labels) // 256
    assert len(module.seen["train"]) == 2 * per_epoch
    assert all(batch.views.shape == (2, 256, 1, 8, 8) for batch in module.seen["train"])
    order = [batch.labels.tolist() for batch in module.seen["train"]]
    assert order[:per_epoch] != order[per_epoch:]
    assert len(torch.stack([batch.views[0, 0] for batch in module.seen["train"]]).unique(dim=0)) == 2 * per_epoch
    half = len(module.seen["val"]) // 2
    for one, other in zip(module.seen["val"][:half], module.seen["val"][half:], strict=True):
        assert torch.equal(one.views, other.views)
    trainer.test(module, datamodule=data, verbose=False)
    assert sum(len(batch.labels) for batch in module.seen["test"]) == 256  # without the incomplete batch
    assert isinstance(module.seen["test"][0], ViewBatch)


def test_batches_and_parts_are_the_sources() -> None:
    data, source = digits(batch_size=100), digits().source
    source.batch_size = 100
    assert data.source.batch_size == data.batch_size == 100
    assert data.num_classes == 10
    assert data.class_names == source.class_names
    assert data.train_dataloader().fingerprint() == source.train_dataloader().fingerprint() is not None
    single = digits(batch_size=100, views=1)
    for name in ("train", "val", "test"):
        assert torch.equal(data.part(name).labels, source.part(name).labels)
        several, one, expected = (
            [batch.labels.tolist() for batch in getattr(either, f"{name}_dataloader")()]
            for either in (data, single, source)
        )
        assert one == expected
        assert several == [batch for batch in expected if len(batch) == 100]
        assert sum(len(batch.labels) for batch in data.plain_loader(name)) == len(source.part(name).labels)
    assert {len(batch.labels) for batch in data.train_dataloader()} == {100}
    few = digits(batch_size=10, label_fraction=0.1)
    assert few.train_dataloader().num_samples == len(few.labeled_subset(0.1)) == 129
    assert torch.equal(data.labeled_subset(0.1), source.labeled_subset(0.1))


def test_images_that_workers_decode_have_views_too(tmp_path: Path) -> None:
    path = tmp_path / "tree.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(24):
            file, generator = io.BytesIO(), np.random.default_rng(i)
            Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file, "PNG")
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", file.getvalue())
    made = []
    for workers in (0, 2):
        torch.manual_seed(0)
        data = ContrastiveViews(ImageTree(str(path), size=8, num_workers=workers), batch_size=4)
        data.prepare_data()
        loader = data.train_dataloader()
        assert isinstance(loader, WorkerLoader) == (workers > 0)
        made.append([data.on_after_batch_transfer(batch, 0).views for batch in loader])
    assert len(made[0]) == 5
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


# The command line, and mistakes.

CONFIG = """
model:
  class_path: lit_models.autoencoder.Autoencoder
data:
  class_path: datamodules.contrastive_views.ContrastiveViews
  init_args:
    source:
      class_path: datamodules.images.Digits
      init_args: {limit: 500}
    batch_size: 64
    size: 16
    augmentation: {scale: [0.2, 1.0], blur: 0.5}
"""


def test_the_command_line_makes_them(tmp_path: Path) -> None:
    (tmp_path / "views.yaml").write_text(CONFIG)
    cli = build(["fit", "-c", "views.yaml", "--data.augmentation.hue", "0.05", "--data.source.split_seed", "3"])
    data = cli.datamodule
    assert isinstance(data, ContrastiveViews)
    assert cli.model.hparams["image_shape"] == [1, 16, 16]
    assert data.augmentation == Augmentation(16, scale=(0.2, 1.0), blur=0.5, hue=0.05)
    assert (data.source.limit, data.source.split_seed, data.source.batch_size) == (500, 3, 64)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("augmentation.scale=[0.5, 0.2]", "scale=(0.5, 0.2): expected 0 < low <= high <= 1"),
        ("augmentation.size=8", "augmentation.size=8: expected size=16, or null"),
        ("views=0", "views=0: expected at least 1"),
        ("batch_size=0", "batch_size=0: expected at least 1"),
        ("small_views=-1", "small_views=-1: expected at least 0"),
        ("small_views=2", "small_size=null with small_views=2: expected the side in pixels"),
        ("small_size=4", "small_size=4 with small_views=0: expected null"),
    ],
)
def test_mistakes_are_one_line(option: str, message: str, tmp_path: Path, mistake: Callable[..., str]) -> None:
    (tmp_path / "views.yaml").write_text(CONFIG)
    assert mistake("fit", "-c", "views.yaml", f"--data.{option}") == message


# Shapes.


@pytest.mark.parametrize(("label", "names"), [("shape", SHAPES), ("color", tuple(COLORS))])
def test_shapes_have_the_labels_that_the_questions_say(label: Any, names: tuple[str, ...]) -> None:
    data = Shapes(label)
    assert data.image_shape == [3, 64, 64]
    assert tuple(data.class_names) == names
    whole = data.read()
    for part, expected in (("train", 4000), ("test", 1000)):
        labels = whole[part].labels
        assert len(labels) == expected
        assert torch.equal(whole[part][0], read_images(part))
        assert labels.bincount(minlength=len(names)).min() > 0.8 * expected / len(names)
        said = {q.image: q.answer for q in _read_questions(part) if q.kind == label}
        assert len(said) > 0.75 * expected
        assert all(names[labels[image]] == answer for image, answer in said.items())
    assert [len(data.part(name).labels) for name in ("train", "val", "test")] == [3600, 400, 1000]


def test_an_unknown_label_is_named() -> None:
    with pytest.raises(ValueError, match="label='size': expected 'shape' or 'color'"):
        Shapes("size")  # type: ignore[arg-type]
