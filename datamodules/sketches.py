"""Sketches: drawings as moves of a pen, from sketch-rnn's files, from QuickDraw and from the outlines of fonts."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from common.checks import at_least, more_than, nearest, one_of, within
from common.distributed import rank_and_world_size
from common.files import data_root, fetch, nearest_path
from common.randomness import keyed_generator
from datamodules.parts import loader
from datamodules.parts.glyph_outlines import glyph_sketches
from datamodules.parts.loader import TensorLoader
from datamodules.parts.stroke_files import MEMBERS, QUICKDRAW_CATEGORIES, fetch_quickdraw, read_stroke_file

OFFSET_LIMIT = 1000
"""raw offsets are clamped to ± this, as in sketch-rnn"""

BATCHES_PER_CHUNK = 16
"""number of global batches whose sketches are sorted by length together"""


class SketchBatch(NamedTuple):
    """B sketches; T is one more than the number of points in the longest, before training drops any."""

    strokes: Tensor
    """(B, T, 5) float32: Δx, Δy in units of the scale factor, y downward, and the pen state as a one-hot: p1 the pen
    stays down until the next point, p2 it is lifted after this one, p3 the drawing has ended. The rows after a sketch's
    last point are (0, 0, 0, 0, 1); each sketch has at least one."""
    lengths: Tensor
    """(B,) int64: number of points in each sketch, without its end row"""
    labels: Tensor
    """(B,) int64: the category, or -1 if there is none"""


def to_stroke_5(offsets: Tensor, lifted: Tensor, lengths: Tensor) -> Tensor:
    """Rows (B, T, 5) of a :class:`SketchBatch`: Ha & Eck 2017, section 3.1.

    Args:
        offsets: (B, T, 2), with any value after a sketch's end.
        lifted: (B, T) bool: whether the pen is lifted after the point; likewise.
        lengths: (B,) number of points in each.
    """
    inside = torch.arange(offsets.shape[1], device=lengths.device) < lengths[:, None]
    pen = torch.stack([inside & ~lifted, inside & lifted, ~inside], 2)
    return torch.cat([offsets * inside[:, :, None], pen.to(offsets.dtype)], 2)


def scale_factor_of(offsets: Tensor) -> float:
    """The standard deviation of offsets (P, 2), of both axes together: what sketch-rnn divides by.

    Raises:
        ValueError: all of them are equal.
    """
    factor = float(offsets.double().std(correction=0))
    if factor == 0:
        raise ValueError(f"all training offsets are {float(offsets[0, 0]):g}: expected real drawings")
    return factor


def scale_randomly(strokes: Tensor, draws: Tensor, amount: float) -> Tensor:
    """Stretches each sketch along x and y by factors within 1 ± ``amount``: strokes (B, T, 5), draws (B, 2) in 0..1."""
    factors = 1 + amount * (2 * draws - 1)
    return torch.cat([strokes[:, :, :2] * factors[:, None], strokes[:, :, 2:]], 2)


def drop_points(batch: SketchBatch, draws: Tensor, probability: float) -> SketchBatch:
    """The batch without some of its points; the remaining points stay where they were.

    As in sketch-rnn's code, any point of a stroke except its first two and last two may be dropped. The next point
    absorbs its offset. T is unchanged: to know a new T, the host would have to wait for the device.

    Args:
        draws: (B, at least T − 1) in 0..1; point i is dropped if the i-th draw is below ``probability``.
    """
    strokes = batch.strokes
    last = strokes.shape[1] - 1  # the row is an end row
    down = strokes[:, :, 2] > 0.5
    dropped = torch.zeros_like(down)
    inner = down[:, :-3] & down[:, 1:-2] & down[:, 2:-1] & down[:, 3:]
    dropped[:, 2:-1] = inner & (draws[:, 2:last] < probability)
    # A row moves up by the rows that were dropped before it; a dropped one meets the next that is kept.
    kept = (~dropped).long()
    places = kept.cumsum(1) - kept
    rows = torch.cat([strokes[:, :, :2], strokes[:, :, 2:] * kept[:, :, None]], 2)
    rows = torch.zeros_like(rows).scatter_add_(1, places[:, :, None].expand_as(rows), rows)
    rows[:, :, 4] = 1 - rows[:, :, 2] - rows[:, :, 3]  # the rows that became free at the end
    return batch._replace(strokes=rows, lengths=batch.lengths - dropped.sum(1))


class SketchTable:
    """Sketches in memory, one after the other; indexed by a vector of rows, it returns one :class:`SketchBatch`.

    Args:
        sketches: stroke-3 arrays (n, 3).
        labels: (N,) int64.

    Attributes:
        offsets: (P, 2) of all points, int16 if they are whole numbers, else float32; clamped.
        lifted: (P,) bool.
        lengths, starts: (N,) number of points in each sketch, and the position of its first.
        scale_factor: the divisor of the offsets.
    """

    def __init__(self, sketches: Sequence[np.ndarray], labels: Tensor) -> None:
        points = np.concatenate(sketches)
        offsets = points[:, :2].astype(np.float64).clip(-OFFSET_LIMIT, OFFSET_LIMIT)
        are_whole = bool((offsets == np.rint(offsets)).all())
        self.offsets = torch.from_numpy(offsets.astype(np.int16 if are_whole else np.float32))
        self.lifted = torch.from_numpy(points[:, 2] == 1)
        self.lengths = torch.tensor([len(sketch) for sketch in sketches])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.labels = labels
        self.scale_factor = 1.0

    def __len__(self) -> int:
        return len(self.lengths)

    def fingerprint(self) -> int:
        """A checksum of the points, the starts of the sketches and the labels."""
        return loader.checksum([self.offsets, self.lifted, self.lengths, self.labels])

    def __getitem__(self, indices: Tensor) -> SketchBatch:
        lengths = self.lengths[indices]
        columns = torch.arange(int(lengths.max()) + 1)
        # Behind its end a sketch reads on in the next one, what to_stroke_5 covers, but not behind the last one's.
        places = (self.starts[indices][:, None] + columns).clamp_(max=len(self.offsets) - 1)
        offsets = self.offsets[places].float() / self.scale_factor
        return SketchBatch(to_stroke_5(offsets, self.lifted[places], lengths), lengths, self.labels[indices])


class BucketedLoader(TensorLoader):
    """A :class:`TensorLoader` whose batches hold sketches of similar length, with little padding.

    The shuffled order is cut into chunks of :data:`BATCHES_PER_CHUNK` global batches. Each chunk is sorted by length
    and cut into global batches, which are then shuffled. Sketches that do not fill a global batch are set aside before
    sorting, so that ``drop_last`` drops sketches of any length, and different ones each epoch.
    """

    def __init__(self, source: SketchTable, batch_size: int, *, drop_last: bool = False, seed: int = 0) -> None:
        super().__init__(source, batch_size, shuffle=True, drop_last=drop_last, seed=seed)
        self.lengths = source.lengths

    def _order(self) -> Tensor:
        generator = keyed_generator(self.seed, self.epoch, "buckets")
        shuffled = torch.randperm(self.num_samples, generator=generator)
        global_batch = self.batch_size * rank_and_world_size()[1]
        num_batches = self.num_samples // global_batch
        full, left_over = shuffled.split([num_batches * global_batch, self.num_samples % global_batch])
        by_length = self.lengths[full].argsort(stable=True)
        by_chunk = (by_length // (BATCHES_PER_CHUNK * global_batch)).argsort(stable=True)
        batches = full[by_length[by_chunk]].view(num_batches, global_batch)
        return torch.cat([batches[torch.randperm(num_batches, generator=generator)].flatten(), left_over])


class Sketches(LightningDataModule):
    """Shared by all sources of sketches: facts, loaders, and the augmentation on the device.

    A source calls :meth:`hold` in its constructor. Training uses batches of sketches of similar length, in an order
    drawn anew each epoch. Evaluation sees each sketch once, in storage order and unchanged; ``predict`` uses the test
    part.

    Args:
        batch_size: sketches per rank and batch.
        random_scale: in training, each sketch is stretched along each axis by a factor within 1 ± this.
        point_drop: in training, the probability of dropping a point within a stroke: see :func:`drop_points`.

    Attributes:
        scale_factor: the standard deviation of the training offsets, by which the offsets of all parts are divided.
        longest: number of points in the longest sketch of all parts: N_max.
        class_names, num_classes: of the labels, in their order.
        parts: the sketches of "train", "val" and "test".

    Raises:
        FileNotFoundError: the data do not exist and cannot be downloaded; says where to put them.
        ValueError: an argument is out of range; the data are broken.
    """

    scale_factor: float
    longest: int

    def __init__(self, batch_size: int = 100, random_scale: float = 0.15, point_drop: float = 0.1) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        within("[0, 1)", random_scale=random_scale, point_drop=point_drop)
        self.batch_size, self.random_scale, self.point_drop = batch_size, random_scale, point_drop
        self.order_seed = torch.initial_seed()  # of seed_everything
        self.class_names: list[str] = []
        self.parts: dict[str, SketchTable] = {}

    def hold(self, parts: Mapping[str, SketchTable]) -> None:
        """Stores the parts and derives the facts from them."""
        self.parts = dict(parts)
        self.scale_factor = scale_factor_of(self.parts["train"].offsets)
        self.longest = max(int(table.lengths.max()) for table in self.parts.values())
        for table in self.parts.values():
            table.scale_factor = self.scale_factor

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Measures offsets in the unit of a checkpoint's model, and counts the classes as it does.

        No model is trained on the labels, so sketches of a class that it does not know just have none.
        """
        self.scale_factor = float(facts.get("scale_factor", self.scale_factor))
        self.longest = int(facts.get("longest", self.longest))
        names = facts.get("class_names")
        for table in self.parts.values():
            table.scale_factor = self.scale_factor
            if names is not None:
                codes = [names.index(name) if name in names else -1 for name in self.class_names] or [-1]
                table.labels = torch.where(table.labels >= 0, torch.tensor(codes)[table.labels.clamp_min(0)], -1)
        if names is not None:
            self.class_names = list(names)
        return {"scale_factor", "longest", "class_names", "num_classes"}

    parts_are_cut = False
    """whether the parts are cut from one whole here"""

    @property
    def part_names(self) -> list[str]:
        """The parts that there are."""
        return list(self.parts)

    def plain_loader(self, part: str) -> TensorLoader:
        """Every sketch of a part once over all ranks, in the order of storage and unchanged."""
        one_of(self.parts, part=part)
        return TensorLoader(self.parts[part], self.batch_size)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The number of each sketch in its part, and its class."""
        labels = self.parts[part].labels.tolist()
        classes = [self.class_names[i] if i >= 0 else "" for i in labels]
        return {"row": range(len(labels)), **({"class": classes} if any(classes) else {})}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def train_dataloader(self) -> TensorLoader:
        return BucketedLoader(self.parts["train"], self.batch_size, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return TensorLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> TensorLoader:
        return TensorLoader(self.parts["test"], self.batch_size)

    def predict_dataloader(self) -> TensorLoader:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: SketchBatch, dataloader_idx: int) -> SketchBatch:
        return self.augmented(batch, self.trainer)

    def augmented(self, batch: SketchBatch, trainer: Trainer | None) -> SketchBatch:
        """The batch, augmented if ``trainer`` trains on it: its draws are a function of where the training is."""
        if trainer is None or not trainer.training or not (self.random_scale or self.point_drop):
            return batch
        # One for each point of the longest sketch there is: a sketch's draws do not depend on who else is in the batch.
        num_draws = 2 + self.longest
        draws = loader.draws_per_sample(trainer, len(batch.lengths), num_draws, self.order_seed)
        for_scale, for_points = draws.to(batch.strokes.dtype).split([2, self.longest], 1)
        batch = batch._replace(strokes=scale_randomly(batch.strokes, for_scale, self.random_scale))
        return drop_points(batch, for_points, self.point_drop)


class SketchNPZ(Sketches):
    """One of sketch-rnn's files: its own data sets (Ha & Eck 2017), QuickDraw's, or any other of that form.

    Their sketches have no labels.

    Args:
        source: "aaron_sheep" (8,000 sheep by the visitors of Aaron Koblin's Sheep Market; CC BY-NC 4.0) or "omniglot"
            (32,000 drawn characters of fifty alphabets; Lake et al. 2015), from ``<root>/sketch_rnn/<source>.npz`` or
            downloaded to it; another name of a file in that folder; or the path of an ``.npz`` file.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size, random_scale, point_drop: see :class:`Sketches`.
    """

    DATA_SETS: ClassVar[str] = "https://github.com/hardmaru/sketch-rnn-datasets"
    SHA256: ClassVar[dict[str, str]] = {
        "aaron_sheep": "65f8e51e43587661798ac137a204c9e049e0d11dcd50cba372ae3ca32de8b54c",
        "omniglot": "bd5277621a8c577919491dfa729a59a8b5c216cff9e4fda9cef532db29f120c7",
    }

    def __init__(
        self,
        source: str = "aaron_sheep",
        root: str | None = None,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop)
        if source in self.SHA256:
            file = data_root(root) / "sketch_rnn" / f"{source}.npz"
            fetch(f"{self.DATA_SETS}/raw/master/{source}/{source}.npz", file, self.SHA256[source])
        else:
            is_path = source.endswith(".npz")
            file = Path(source) if is_path else data_root(root) / "sketch_rnn" / f"{source}.npz"
            if not file.is_file():
                hint = nearest_path(file, *(str(file.with_name(f"{name}.npz")) for name in self.SHA256))
                raise FileNotFoundError(f"{file}: not found; expected an .npz file as {self.DATA_SETS} has{hint}")
        arrays = read_stroke_file(file)
        self.hold({part: SketchTable(part_of, torch.full((len(part_of),), -1)) for part, part_of in arrays.items()})


class QuickDraw(Sketches):
    """Categories of Quick, Draw! in sketch-rnn's form: 70,000, 2,500 and 2,500 sketches of each; CC BY 4.0.

    From ``<root>/sketch_rnn/quickdraw/<category>.npz`` or downloaded to it. A sketch's label is the position of its
    category in the given list.

    Args:
        categories: their names, as "cat" or "The Eiffel Tower".
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size, random_scale, point_drop: see :class:`Sketches`.
    """

    def __init__(
        self,
        categories: Sequence[str] = ("cat",),
        root: str | None = None,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop)
        if isinstance(categories, str) or not categories or len(set(categories)) < len(categories):
            raise ValueError(f"categories={categories!r}: expected a list of names, each once")
        folder = data_root(root) / "sketch_rnn" / "quickdraw"
        files = {category: folder / f"{category}.npz" for category in categories}
        for category, file in files.items():
            if category not in QUICKDRAW_CATEGORIES and not file.is_file():
                hint = nearest(category, QUICKDRAW_CATEGORIES)
                raise ValueError(f"categories={category!r}: expected a category of QuickDraw{hint}")
        for category, file in files.items():
            fetch_quickdraw(category, file)
        arrays = [read_stroke_file(file) for file in files.values()]
        parts = {}
        for part in MEMBERS:
            labels = [torch.full((len(each[part]),), label) for label, each in enumerate(arrays)]
            parts[part] = SketchTable([sketch for each in arrays for sketch in each[part]], torch.cat(labels))
        self.class_names = list(categories)
        self.hold(parts)


class Glyphs(Sketches):
    """Outlines of letters and digits from the fonts that come with matplotlib; test fonts are never trained on.

    The fonts are split by family: DejaVu Sans, Sans Mono and Serif and Computer Modern (roman, bold, italic), 15 fonts,
    for training; Computer Modern Sans and Typewriter for validation; the four STIX fonts, a Times, for the test. See
    :func:`~datamodules.parts.glyph_outlines.glyph_sketches` for units and for the order in which outlines are drawn.

    Args:
        characters: the characters to draw; each is a class.
        epsilon: largest distance of a simplified outline from the font's, in hundredths of the height of an H. (With 2,
            no letter or digit has more than 53 points.)
        variants: number of further versions of each training font, slanted and narrower or wider.
        batch_size, random_scale, point_drop: see :class:`Sketches`.
    """

    def __init__(
        self,
        characters: str = string.ascii_uppercase + string.ascii_lowercase + string.digits,
        epsilon: float = 2.0,
        variants: int = 3,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop)
        if not characters or len(set(characters)) < len(characters):
            raise ValueError(f"characters={characters!r}: expected at least one, each once")
        more_than(0, epsilon=epsilon)
        at_least(0, variants=variants)
        parts = {}
        for part in MEMBERS:
            sketches, labels = glyph_sketches(part, characters, epsilon, variants if part == "train" else 0)
            parts[part] = SketchTable(sketches, torch.from_numpy(labels))
        self.class_names = list(characters)
        self.hold(parts)
