"""Images with examples of what is alike (+) and what is not (−): by classes, or as explicit pairs and triplets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from common.checks import at_least, one_of
from common.distributed import rank_and_world_size
from common.files import nearest_path
from common.randomness import keyed_generator
from datamodules.parts.augment import Augmentation
from datamodules.parts.image_sets import ImageBatch, Images, Part
from datamodules.parts.loader import TensorLoader, WorkerLoader, checksum, training_draws
from datamodules.parts.wrapped_images import WrappedImages

GROUPS = ("pairs", "triplets")
COLUMNS = (["anchor", "other", "same"], ["anchor", "positive", "negative"])


class ExampleBatch(NamedTuple):
    """B groups of G images, in 0..1 and the model's precision. The first of a group is its anchor."""

    images: Tensor
    """(B, G, C, H, W): G is 1 if the classes define what is alike, 2 for pairs, 3 for triplets"""
    labels: Tensor
    """(B, G) int64: the classes, or -1 if they are unknown"""
    same: Tensor
    """(B, G − 1) bool: which of the others are like the anchor"""


class Groups:
    """Explicit groups of the images of a part, as a source of :class:`ExampleBatch`.

    Args:
        part: the images.
        rows: (N, G) of the part: N groups.
        same: (N, G − 1), see :class:`ExampleBatch`.
    """

    def __init__(self, part: Part, rows: Tensor, same: Tensor) -> None:
        self.part, self.rows, self.same = part, rows, same

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> int:
        """A checksum of the images and of the groups."""
        images = TensorLoader(self.part, 1).fingerprint()  # of a part in memory or of files
        return checksum([torch.tensor(images), self.rows, self.same])

    def __getitem__(self, indices: Tensor) -> ExampleBatch:
        rows = self.rows[indices]
        flat = rows.flatten()
        images, labels = self.part.take(flat) if isinstance(self.part, ImageBatch) else self.part[flat]
        return ExampleBatch(images.unflatten(0, rows.shape), labels.view(rows.shape), self.same[indices])


def draw_groups(labels: Tensor, kind: Literal["pairs", "triplets"], *key: int | str) -> tuple[Tensor, Tensor]:
    """Groups of every image with one of its own class and one of another, drawn uniformly: a function of ``key``.

    Args:
        labels: (N,), each at least 0.
        kind: two pairs for each image, (2N, 2), the first within one class; or a triplet for each, (N, 3).

    Returns:
        the rows of the groups, and which of the others have the anchor's class. Images that are alone in their class
        are not anchors.

    Raises:
        ValueError: there is only one class, or no class has two images.
    """
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) < 2 or int(counts.max()) < 2:
        raise ValueError(
            f"groups={kind!r}: {len(labels)} images of {len(counts)} classes, expected at least two classes, and two "
            "images of one of them"
        )
    by_class = classes.argsort(stable=True)
    begins = counts.cumsum(0) - counts
    place = torch.empty_like(by_class)
    place[by_class] = torch.arange(len(labels))  # of each image in by_class
    anchors = (counts[classes] > 1).nonzero()[:, 0]
    count, begin, place = counts[classes[anchors]], begins[classes[anchors]], place[anchors]
    draws = torch.rand(2, len(anchors), dtype=torch.double, generator=keyed_generator(*key, "groups"))
    # Of the others of the class: so many places on, in a circle.
    positive = begin + (place - begin + 1 + (draws[0] * (count - 1)).long()) % count
    # Of the images without this class, which is a run of by_class.
    negative = (draws[1] * (len(labels) - count)).long()
    negative += torch.where(negative >= begin, count, 0)
    positive, negative = by_class[positive], by_class[negative]
    if kind == "triplets":
        same = torch.tensor([[True, False]]).repeat(len(anchors), 1)
        return torch.stack([anchors, positive, negative], 1), same
    pairs = torch.stack([anchors, positive, anchors, negative], 1).view(-1, 2)
    return pairs, torch.tensor([[True], [False]]).repeat(len(anchors), 1)


def read_lines(file: Path) -> tuple[int, list[tuple[int, list[str]]]]:
    """A CSV file of groups: how many images a group has, and its lines but for the heading, with their numbers.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is no text, or its first line is not one of :data:`COLUMNS`.
    """
    if not file.is_file():
        near = nearest_path(file, "pairs", "triplets")
        raise FileNotFoundError(f"groups={file}: no such file; expected 'pairs', 'triplets' or a CSV file{near}")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.reader(opened, strict=True)
            lines = [(reader.line_num, line) for line in reader if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: expected a CSV file in UTF-8: {error}") from error
    heading = [name.strip() for name in lines[0][1]] if lines else []
    if heading not in COLUMNS:
        raise ValueError(f"{file}: starts with {','.join(heading)!r}, expected {' or '.join(map(','.join, COLUMNS))!r}")
    return 2 + COLUMNS.index(heading), lines[1:]


def read_groups(file: Path, number_of: Callable[[str], int]) -> tuple[Tensor, Tensor, list[int]]:
    """Pairs or triplets from a CSV file, whose first line is ``anchor,other,same`` or ``anchor,positive,negative``.

    Args:
        number_of: gives the number of the image that the file calls so, or raises ValueError; ``same`` is 0 or 1.

    Returns:
        the images' numbers (N, G), which of the others are of the anchor's kind (N, G − 1), and each group's line.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it has another form, or an image is not there; names the line.
    """
    size, lines = read_lines(file)
    groups, same = [], []
    for number, line in lines:
        values = [value.strip() for value in line]
        try:
            if len(values) != 3:
                raise ValueError(f"{len(values)} values, expected 3")
            if size == 2:
                one_of(("0", "1"), same=values[2])
            groups.append([number_of(value) for value in values[:size]])
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {','.join(line)!r}: {error}") from None
        same.append([values[2] == "1"] if size == 2 else [True, False])
    if not groups:
        raise ValueError(f"{file}: holds no {'pair' if size == 2 else 'triplet'}")
    return torch.tensor(groups), torch.tensor(same), [number for number, _ in lines]


class ClassBalancedLoader(TensorLoader):
    """Each global batch has m samples of each of p classes, p · m = batch_size · ranks.

    An epoch has as many such batches as possible without using a sample twice; the samples left out of larger classes
    are drawn anew each epoch.

    Args:
        labels: (N,) of the source's samples.
        samples_per_class: m. Classes with fewer samples are left out.

    Raises:
        ValueError: there is no such p, or there are too few such classes.
    """

    def __init__(self, *args: Any, labels: Tensor, samples_per_class: int, **options: Any) -> None:
        super().__init__(*args, shuffle=True, drop_last=True, **options)
        self.samples_per_class = samples_per_class
        _, self.classes, counts = labels.unique(return_inverse=True, return_counts=True)
        self.counts = counts
        self.runs = counts // samples_per_class  # of m samples each, that a class can give

    def _classes_per_batch(self) -> int:
        size = self.batch_size * rank_and_world_size()[1]
        p, left_over = divmod(size, self.samples_per_class)
        enough = int((self.runs > 0).sum())
        if left_over or p < 2:
            raise ValueError(
                f"samples_per_class={self.samples_per_class}: expected a divisor of the global batch of {size} images "
                "that leaves at least two classes"
            )
        if p > enough:
            raise ValueError(
                f"samples_per_class={self.samples_per_class}: a global batch of {size} images needs {p} classes, but "
                f"only {enough} have enough images; use more samples per class, or a smaller batch_size"
            )
        return p

    def _boundaries(self) -> list[int]:
        p = self._classes_per_batch()
        # n batches are possible where the classes can give n · p runs, of which none gives one batch two.
        low, high = 0, int(self.runs.sum()) // p
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if int(self.runs.clamp(max=middle).sum()) >= middle * p else (low, middle - 1)
        size = p * self.samples_per_class
        return list(range(0, low * size + 1, size))

    def _order(self) -> Tensor:
        p, generator = self._classes_per_batch(), keyed_generator(self.seed, self.epoch)
        shuffled = torch.randperm(len(self.classes), generator=generator)
        by_class = shuffled[self.classes[shuffled].argsort(stable=True)]
        begins, left, chosen = self.counts.cumsum(0) - self.counts, self.runs.clone(), []
        for _ in range(len(self)):
            # Those with the most runs left first, or in the end some would have to be in a batch twice.
            first = (left + torch.rand(len(left), generator=generator)).topk(p).indices
            left[first] -= 1
            start = begins[first] + left[first] * self.samples_per_class
            chosen.append(by_class[start[:, None] + torch.arange(self.samples_per_class)].flatten())
        # Else the first batches of an epoch would be of the large classes alone.
        return torch.stack(chosen)[torch.randperm(len(chosen), generator=generator)].flatten()


class ClassBalancedWorkerLoader(ClassBalancedLoader, WorkerLoader):
    """A :class:`ClassBalancedLoader` for images decoded by worker processes."""


class LabelledPairs(WrappedImages):
    """Examples of what is alike and what is not, from any source of images.

    By default a batch holds images with their classes, which determine for every two images whether they are a positive
    pair; ``samples_per_class`` sets how many of each class it holds. ``groups`` gives explicit pairs or triplets
    instead. In evaluation every image comes once, with its class.

    Args:
        source: the source of the images; its own batch size is replaced.
        batch_size: images, or groups, per rank and batch.
        samples_per_class: number of images of each class in a global batch; by default images are drawn regardless of
            their class.
        groups: ``pairs`` or ``triplets``, drawn once, see :func:`draw_groups`; or a CSV file of them, see
            :func:`read_groups`. Images of an :class:`~datamodules.image_tree.ImageTree` go by the names of their files
            below the folder or in the archive, others by their numbers: those of the data set's training images in
            storage order, starting at 0, before any are used for validation or left out: MNIST's are 0 to 59999. It may
            include images without a class.
        unseen_classes: names of at least two classes that are left out of training and validation and are the only ones
            in the test. They show whether the model recognizes likeness among classes that it has never seen.
        augmentation: applied to training images, each with its own draws. It makes squares, by default as large as the
            source's shorter side; evaluated images are then the middle of the source's, in that size.

    Attributes:
        image_shape: C, H, W: the source's, or of those squares.
        num_classes, class_names: those of the source.
        group_size: images in a group: 2 for pairs, 3 for triplets, and 1 if the classes define what is alike.

    Raises:
        ValueError: an argument is out of range, or two arguments contradict each other; the images have no classes; in
            ``setup``, the validation or test images have fewer than two classes.
    """

    def __init__(
        self,
        source: Images,
        batch_size: int = 128,
        samples_per_class: int | None = None,
        groups: str | None = None,
        unseen_classes: Sequence[str | int] = (),
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__(source, batch_size, least=2)
        at_least(2, "or null for any number", samples_per_class=samples_per_class)
        if samples_per_class is not None and groups is not None:
            raise ValueError(f"samples_per_class={samples_per_class} with groups={groups!r}: expected null")
        if source.num_classes == 0:
            raise ValueError(
                "source: its pictures have no classes; expected a folder for each class, or a labels.csv with "
                "file,label in each line"
            )
        names = [str(name) for name in unseen_classes]
        if unknown := [name for name in names if name not in source.class_names]:
            raise ValueError(f"unseen_classes={unknown[0]!r}: expected one of {', '.join(source.class_names[:20])}")
        if len(set(names)) == 1:
            raise ValueError(f"unseen_classes={names}: expected at least two for the test to tell apart, or none")
        if names and len(source.class_names) - len(set(names)) < 2:
            raise ValueError(f"unseen_classes={names}: expected to leave at least two classes to train on")
        self.groups, self.samples_per_class = groups, samples_per_class
        if groups is not None and groups not in GROUPS:
            self.groups = str(source.table(groups))
        self.augmentation = augmentation
        if augmentation is not None:
            size = augmentation.size or min(source.image_shape[1:])
            self.augmentation = replace(augmentation, size=size)
            self.image_shape = [source.image_shape[0], size, size]
        self.unseen = torch.tensor([source.class_names.index(name) for name in names], dtype=torch.long)
        self._parts: dict[str, Part] = {}

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Images.adopt`."""
        names = [self.class_names[code] for code in self.unseen]
        settled = super().adopt(facts)
        self.image_shape = self.source.image_shape
        self.unseen = torch.tensor([self.class_names.index(name) for name in names], dtype=torch.long)
        return settled

    @property
    def group_size(self) -> int:
        if self.groups is None:
            return 1
        return GROUPS.index(self.groups) + 2 if self.groups in GROUPS else read_lines(Path(self.groups))[0]

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        for name in self.source.parts:
            if name != "train":
                self._refuse_one_class(name)

    def _refuse_one_class(self, name: str) -> None:
        """Checks that evaluated images have two classes: with one, every image would be a hit and no pair a miss."""
        found = self.source.part(name).labels[self._kept(name)].unique().tolist()
        if len(found) < 2:
            names = ", ".join(self.class_names[code] for code in found) or "none"
            raise ValueError(f"part {name!r}: has images of too few classes ({names}); expected at least two")

    def _kept(self, name: str) -> Tensor:
        """Ascending rows (n,) of the source's part that have a class which belongs in this part."""
        labels = self.source.part(name).labels
        kept = labels >= 0
        if len(self.unseen):
            kept &= torch.isin(labels, self.unseen) == (name == "test")
        return kept.nonzero()[:, 0]

    def part(self, name: str) -> Part:
        """The images of "train", "val" or "test" that have a class which belongs in this part."""
        if name not in self._parts:
            whole, kept = self.source.part(name), self._kept(name)
            if not len(kept):
                raise ValueError(f"part {name!r}: no image with a class is left")
            self._parts[name] = whole if len(kept) == len(whole.labels) else whole.take(kept)
        return self._parts[name]

    def labeled_subset(self, fraction: float) -> Tensor:
        """:meth:`Images.labeled_subset`, as rows of :meth:`part`.

        Raises:
            ValueError: also if classes are unseen, since nothing fitted on the other classes can name them.
        """
        if len(self.unseen):
            raise ValueError("unseen_classes: the test has different classes than the training")
        return torch.searchsorted(self._kept("train"), self.source.labeled_subset(fraction))

    def plain_loader(self, part: Literal["train", "val", "test"]) -> TensorLoader:
        """Every image of a part once, in storage order, as an :class:`ImageBatch`."""
        return self.source.plain_loader(part).over(self.part(part))

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """:meth:`Images.sample_names`, of the images that have a class which belongs in this part."""
        kept = self._kept(part).tolist()
        return {name: [values[row] for row in kept] for name, values in super().sample_names(part).items()}

    def _groups_of(self, file: Path) -> Groups:
        """The groups of a file, see :func:`read_groups`, as rows of the source's training part.

        Raises:
            ValueError: an image is not trained on; names the file and the line.
        """
        whole, rows_of = self.source.part("train"), self.source.training_rows
        images, same, lines = read_groups(file, self.source.number_of)
        rows = rows_of[images]
        unseen = torch.isin(whole.labels[rows], self.unseen) & (rows >= 0)
        if len(refused := ((rows < 0) | unseen).nonzero()):
            group, place = refused[0].tolist()
            reason = "validates" if self.source.limit is None else "validates, or limit leaves it out"
            if unseen[group, place]:
                reason = "is of an unseen class"
            image = read_lines(file)[1][group][1][place].strip()
            raise ValueError(f"{file}:{lines[group]}: image {image} {reason}; expected a training image")
        return Groups(whole, rows, same)

    def train_dataloader(self) -> TensorLoader:
        loader, seed = super().train_dataloader(), self.source.order_seed
        if self.groups is not None and self.groups not in GROUPS:
            groups = self._groups_of(Path(self.groups))
            return TensorLoader(groups, self.batch_size, shuffle=True, drop_last=True, seed=seed)
        part = self.part("train")
        if self.samples_per_class is not None:
            options: dict[str, Any] = {"labels": part.labels, "samples_per_class": self.samples_per_class, "seed": seed}
            if isinstance(loader, WorkerLoader):
                workers = loader.num_workers
                return ClassBalancedWorkerLoader(part, self.batch_size, num_workers=workers, **options)
            return ClassBalancedLoader(part, self.batch_size, **options)
        if self.groups is not None:
            rows, same = draw_groups(part.labels, self.groups, self.source.split_seed)  # type: ignore[arg-type]
            return TensorLoader(Groups(part, rows, same), self.batch_size, shuffle=True, drop_last=True, seed=seed)
        return loader.over(part)

    def val_dataloader(self) -> TensorLoader:
        return self.plain_loader("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        self.setup()
        return self.plain_loader("test") if "test" in self.source.parts else []

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: ImageBatch | ExampleBatch, dataloader_idx: int) -> ExampleBatch:
        if isinstance(batch, ImageBatch):
            images, labels = batch.images[:, None], batch.labels[:, None]
            batch = ExampleBatch(images, labels, labels[:, 1:].bool())
        count, each = batch.images.shape[:2]
        flat = ImageBatch(batch.images.flatten(0, 1), batch.labels.flatten())
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            draws = training_draws(self.trainer, count, each * Augmentation.num_draws, self.source.order_seed)
            images = self.augmentation(flat.images, draws.view(count * each, -1), self.dtype)
        else:
            images = self.to_float(flat).images
        return batch._replace(images=images.unflatten(0, (count, each)))
