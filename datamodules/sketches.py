"""Sketches: drawings as moves of a pen, from sketch-rnn's files, from QuickDraw and from the outlines of fonts."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from common.checks import at_least, more_than, nearest, one_of, within
from common.distributed import rank_and_world_size
from common.files import data_root, fetch, nearest_path
from common.randomness import keyed_generator
from datamodules.parts import loader
from datamodules.parts.glyph_outlines import glyph_sketches
from datamodules.parts.image_files import PARTS, counted
from datamodules.parts.image_sets import stratified_order
from datamodules.parts.loader import TensorLoader
from datamodules.parts.sketch_batches import SketchBatch, SketchTable, drop_points, scale_factor_of, scale_randomly
from datamodules.parts.sketch_batches import to_stroke_5 as to_stroke_5  # still found here
from datamodules.parts.stroke_files import QUICKDRAW_CATEGORIES, fetch_quickdraw, read_stroke_file

BATCHES_PER_CHUNK = 16
"""number of global batches whose sketches are sorted by length together"""

EXTREME = 100
"""standard deviations beyond which a training offset is told of: sketches of one unit have none"""


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
    drawn anew each epoch. Evaluation sees each sketch once and unchanged, in storage order, or, where that is one class
    after the other, in a fixed order of all classes; ``predict`` uses the test part, in storage order.

    Args:
        batch_size: sketches per rank and batch.
        random_scale: in training, each sketch is stretched along each axis by a factor within 1 ± this.
        point_drop: in training, the probability of dropping a point within a stroke: see
            :func:`~datamodules.parts.sketch_batches.drop_points`.
        max_points: leave out sketches of more points, and say how many. Sketch-RNN's loss is divided by the number of
            points in the longest sketch, so that a single long one rules the training.

    Attributes:
        scale_factor: the standard deviation of the training offsets, by which the offsets of all parts are divided.
        longest: number of points in the longest sketch of all parts: N_max.
        class_names, num_classes: of the labels, in their order.
        parts: the sketches of "train", "val" and, if there is one, "test".
        val_fraction, test_fraction, split_seed: how a part that the source lacks is cut from its training part, the
            same share of each class.
        limit: the number of training sketches, each class in proportion; None for all.

    Raises:
        FileNotFoundError: the data do not exist and cannot be downloaded; says where to put them.
        ValueError: an argument is out of range; the data are broken.
    """

    scale_factor: float
    longest: int
    preparation: dict[str, Any] | None = None
    """how the lines of a file become pen moves, for models that are asked about files"""
    val_fraction = test_fraction = 0.1
    split_seed = 0
    limit: int | None = None

    def __init__(
        self,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
        max_points: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(1, "or null for any number", max_points=max_points)
        within("[0, 1)", random_scale=random_scale, point_drop=point_drop)
        self.batch_size, self.random_scale, self.point_drop = batch_size, random_scale, point_drop
        self.max_points = max_points
        self.order_seed = torch.initial_seed()  # of seed_everything
        self.class_names: list[str] = []
        self.parts: dict[str, SketchTable] = {}
        self.parts_are_cut = False  # from one whole here
        self._most_points = 0  # of a sketch in any part

    def hold(self, parts: Mapping[str, SketchTable], source: str = "", notes: Sequence[str] = ()) -> None:
        """Stores the parts and derives the facts from them.

        Args:
            parts: "train", or "all" for sketches that are in no part yet; "val" and "test" are cut from it where they
                are missing, except for a test with ``test_fraction`` 0.
            source: where they are from, for the line that says what there is, what was cut and what left out.
            notes: what the source left out.

        Raises:
            ValueError: a part has no sketch, or there are too few to cut it.
        """
        there, notes = dict(parts), list(notes)
        self.parts_are_cut = "all" in there
        if self.max_points is not None:
            short = {name: table.lengths <= self.max_points for name, table in there.items()}
            for name, kept in short.items():
                if not kept.any():
                    raise ValueError(f"max_points={self.max_points}: leaves no drawing in {name}, expected more")
                there[name] = there[name].only(kept)
            if left_out := sum(int((~kept).sum()) for kept in short.values()):
                notes.append(f"{counted(left_out, 'drawing')} of more than {self.max_points} points left out")
        rest = there.pop("all") if self.parts_are_cut else there.pop("train")
        wanted = {"test": self.test_fraction, "val": self.val_fraction}
        missing = [part for part, share in wanted.items() if part not in there and share]
        for part in missing:
            count = max(1, round(len(rest) * wanted[part]))
            if count >= len(rest):
                raise ValueError(f"{source}: {counted(len(rest), 'drawing')}, expected at least one for each part")
            chosen = self._share(rest, part, count)
            there[part], rest = rest.only(chosen), rest.only(~chosen)
        if self.limit is not None and self.limit < len(rest):
            notes.append(f"limit={self.limit} of {len(rest)} are trained on")
            rest = rest.only(self._share(rest, "limit", self.limit))
        self._measure({part: {**there, "train": rest}[part] for part in PARTS if part in (*there, "train")})
        if source:
            sizes = ", ".join(f"{len(table)} {part}" for part, table in self.parts.items())
            cut = f" ({' and '.join(sorted(missing))} cut from the rest)" if missing else ""
            rank_zero_info("; ".join([f"{source}: {self.in_words()}", f"{sizes}{cut}", *notes]))

    def _share(self, table: SketchTable, key: str, count: int) -> Tensor:
        """(N,) bool: which ``count`` of the sketches to take, of each class in proportion."""
        chosen = torch.zeros(len(table), dtype=torch.bool)
        chosen[stratified_order(table.labels, key, self.split_seed)[:count]] = True
        return chosen

    def _measure(self, parts: dict[str, SketchTable]) -> None:
        self.parts = parts
        offsets = parts["train"].offsets
        self.scale_factor = scale_factor_of(offsets)
        self.longest = self._most_points = max(int(table.lengths.max()) for table in parts.values())
        for table in parts.values():
            table.scale_factor = self.scale_factor
        if extreme := int((offsets.abs() > EXTREME * self.scale_factor).any(1).sum()):
            rank_zero_warn(
                f"{counted(extreme, 'training offset')} of more than {EXTREME} standard deviations will rule the loss "
                f"(the largest is {float(offsets.abs().max()):g}, the standard deviation {self.scale_factor:g}); "
                "expected drawings in one unit"
            )

    def in_words(self) -> str:
        """How many sketches and classes there are: ``60 drawings of 2 classes (cat, house)``."""
        total, few = counted(sum(map(len, self.parts.values())), "drawing"), 8
        names = ", ".join(self.class_names[:few]) + (", …" if self.num_classes > few else "")
        classes = f"{self.num_classes} class{'' if self.num_classes == 1 else 'es'}"
        return f"{total} of {classes} ({names})" if names else f"{total}, no classes"

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
        return {"scale_factor", "longest", "class_names", "num_classes", "preparation"}

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
        return {"row": self.parts[part].rows.tolist(), **({"class": classes} if any(classes) else {})}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def train_dataloader(self) -> TensorLoader:
        return BucketedLoader(self.parts["train"], self.batch_size, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return self._mixed("val")

    def test_dataloader(self) -> TensorLoader:
        return self._mixed("test") if "test" in self.parts else []  # type: ignore[return-value]  # as Lightning has it

    def predict_dataloader(self) -> TensorLoader:
        return self.plain_loader("test") if "test" in self.parts else []  # type: ignore[return-value]

    def _mixed(self, part: str) -> TensorLoader:
        """A part for evaluation, where sketches that are stored one class after the other come in an order of all."""
        plain, labels = self.plain_loader(part), self.parts[part].labels
        if len(labels.unique()) == 1 or (labels.diff() < 0).any():
            return plain
        return plain.in_order(stratified_order(labels, "evaluated", part, self.split_seed))

    def on_after_batch_transfer(self, batch: SketchBatch, dataloader_idx: int) -> SketchBatch:
        return self.augmented(batch, self.trainer)

    def augmented(self, batch: SketchBatch, trainer: Trainer | None) -> SketchBatch:
        """The batch, augmented if ``trainer`` trains on it: its draws are a function of where the training is."""
        if trainer is None or not trainer.training or not (self.random_scale or self.point_drop):
            return batch
        # One for each point of the longest sketch there is: a sketch's draws do not depend on who else is in the batch.
        most = max(self.longest, self._most_points)  # a checkpoint's longest may be shorter
        draws = loader.draws_per_sample(trainer, len(batch.lengths), 2 + most, self.order_seed)
        for_scale, for_points = draws.to(batch.strokes.dtype).split([2, most], 1)
        batch = batch._replace(strokes=scale_randomly(batch.strokes, for_scale, self.random_scale))
        return drop_points(batch, for_points, self.point_drop)


class SketchNPZ(Sketches):
    """One of sketch-rnn's files: its own data sets (Ha & Eck 2017), QuickDraw's, or any other of that form.

    Their sketches have no labels. Of a file without parts for validation or the test, a tenth of the sketches is each.
    Other forms are read by :class:`datamodules.sketch_files.SketchFiles`.

    Args:
        source: "aaron_sheep" (8,000 sheep by the visitors of Aaron Koblin's Sheep Market; CC BY-NC 4.0) or "omniglot"
            (32,000 drawn characters of fifty alphabets; Lake et al. 2015), from ``<root>/sketch_rnn/<source>.npz`` or
            downloaded to it; another name of a file in that folder; or the path of an ``.npz`` file.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size, random_scale, point_drop, max_points: see :class:`Sketches`.
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
        max_points: int | None = None,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop, max_points)
        folder = data_root(root) / "sketch_rnn"
        if source in self.SHA256:
            file = folder / f"{source}.npz"
            fetch(f"{self.DATA_SETS}/raw/master/{source}/{source}.npz", file, self.SHA256[source])
        else:
            file = self._file(source, folder)
        arrays = read_stroke_file(file)
        tables = {part: SketchTable(some, torch.full((len(some),), -1)) for part, some in arrays.items()}
        self.hold(tables, str(file))

    def _file(self, source: str, folder: Path) -> Path:
        """The file that a name or a path stands for.

        Raises:
            FileNotFoundError: there is none. ValueError: it is not an ``.npz``.
        """
        given, named = Path(source), folder / f"{source}.npz"
        if source.endswith(".npz") or (named.is_file() and not given.is_file()):
            file = given if source.endswith(".npz") else named
        elif given.exists() or given.suffix in (".ndjson", ".svg"):
            raise ValueError(
                f"source={source!r}: expected an .npz file; .ndjson files and folders are read by "
                "datamodules.sketch_files.SketchFiles"
            )
        else:
            there = [path.stem for path in folder.glob("*.npz")]
            raise FileNotFoundError(
                f"{named}: not found; expected {' or '.join(self.SHA256)}, the name of a file there, or the path of an "
                f".npz file as {self.DATA_SETS} has{nearest(source, [*self.SHA256, *there])}"
            )
        if not file.exists():
            hint = nearest_path(file)
            raise FileNotFoundError(f"{file}: not found; expected an .npz file as {self.DATA_SETS} has{hint}")
        return file


class QuickDraw(Sketches):
    """Categories of Quick, Draw! in sketch-rnn's form: 70,000, 2,500 and 2,500 sketches of each; CC BY 4.0.

    From ``<root>/sketch_rnn/quickdraw/<category>.npz`` or downloaded to it. A sketch's label is the position of its
    category in the given list.

    Args:
        categories: their names, as "cat" or "The Eiffel Tower".
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size, random_scale, point_drop, max_points: see :class:`Sketches`.
    """

    def __init__(
        self,
        categories: Sequence[str] = ("cat",),
        root: str | None = None,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
        max_points: int | None = None,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop, max_points)
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
        found = {category: read_stroke_file(file) for category, file in files.items()}
        self.class_names = list(categories)
        tables = {}
        for part in [name for name in ("all", *PARTS) if any(name in each for each in found.values())]:
            lacking = [str(files[category]) for category, each in found.items() if part not in each]
            if lacking:
                raise ValueError(f"{lacking[0]}: it has no part {part}, expected the same parts as the other files")
            labels = [torch.full((len(each[part]),), label) for label, each in enumerate(found.values())]
            tables[part] = SketchTable([sketch for each in found.values() for sketch in each[part]], torch.cat(labels))
        self.hold(tables, str(folder))


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
        for part in PARTS:
            sketches, labels = glyph_sketches(part, characters, epsilon, variants if part == "train" else 0)
            parts[part] = SketchTable(sketches, torch.from_numpy(labels))
        self.class_names = list(characters)
        self.hold(parts)
