"""Sequences of different lengths: lines of a text, sketches point by point, images row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of
from common.randomness import keyed_generator
from common.vocabulary import decode_chars
from datamodules.parts import loader
from datamodules.parts.image_sets import ImageBatch, Images
from datamodules.parts.loader import TensorLoader
from datamodules.parts.text_lines import codes_of, first_of_each, line_bounds
from datamodules.parts.wrapped_images import WrappedImages
from datamodules.sketches import BucketedLoader, SketchBatch, Sketches
from datamodules.text import CharText, Unknown

Part = Literal["train", "val", "test"]
LineSplit = Literal["position", "random"]


class SequenceBatch(NamedTuple):
    """B sequences; T is at least the length of the longest of them; values after a sequence's end are 0."""

    values: Tensor
    """(B, T, D) of real numbers, or (B, T) int64: codes of characters"""
    lengths: Tensor
    """(B,) int64"""
    labels: Tensor
    """(B,) int64: the class, or -1 if there is none"""


class SequenceData(Protocol):
    """What a data module provides for the sequence autoencoder, besides loaders whose batches are SequenceBatch.

    Text has ``vocab``, the characters by their codes, and real numbers have ``sequence_dim`` D. Real numbers also have
    :meth:`sequences`; they may have ``scaling`` (:class:`common.scaling.Scaling`, as a dict) if their values are not in
    the units in which people have them, and ``channel_names``.
    """

    longest: int
    """number of elements in the longest sequence of all parts"""

    def sequences(self, part: Part) -> Iterable[SequenceBatch]:
        """Every sequence of a part once over all ranks, unchanged: for the principal components."""
        ...


def positions_of(strokes: Tensor, lengths: Tensor) -> Tensor:
    """Strokes (B, T, 5) of a :class:`~datamodules.sketches.SketchBatch` → (B, T, 3): where each point is.

    x and y in the unit of the strokes, with the center of the drawing's bounding box at 0, and 1 if the pen is lifted
    after the point, else 0. These are positions rather than offsets, so that an error at one point moves no other.
    """
    inside = torch.arange(strokes.shape[1], device=strokes.device) < lengths[:, None]
    places = strokes[:, :, :2].cumsum(1)  # behind the end the pen does not move
    middle = (places.amin(1, keepdim=True) + places.amax(1, keepdim=True)) / 2
    return torch.cat([places - middle, strokes[:, :, 3:4]], 2) * inside[:, :, None]


class SequenceTable:
    """Sequences in memory, one after the other; indexed by a vector of rows, it returns one :class:`SequenceBatch`.

    Args:
        values: (P, D) float32 of all elements, or (P,) of codes in any integer type.
        lengths: (N,) int64, number of elements in each sequence.
        starts: (N,) int64, where each begins; by default, where the one before it ends.
        labels: (N,) int64; by default -1.
    """

    def __init__(
        self, values: np.ndarray, lengths: Tensor, starts: Tensor | None = None, labels: Tensor | None = None
    ) -> None:
        self.values, self.lengths = values, lengths
        self.starts = lengths.cumsum(0) - lengths if starts is None else starts
        self.labels = torch.full_like(lengths, -1) if labels is None else labels

    def __len__(self) -> int:
        return len(self.lengths)

    def fingerprint(self) -> int:
        """A checksum of the values, of the lengths and of the labels."""
        return loader.checksum([torch.from_numpy(self.values), self.lengths, self.labels])

    def __getitem__(self, indices: Tensor) -> SequenceBatch:
        lengths = self.lengths[indices]
        columns = torch.arange(int(lengths.max()))
        inside = columns < lengths[:, None]
        places = (self.starts[indices][:, None] + columns) * inside
        if self.values.ndim == 1:
            codes = torch.from_numpy(self.values[places.numpy()].astype(np.int64)) if inside.any() else places
            return SequenceBatch(codes * inside, lengths, self.labels[indices])
        values = torch.from_numpy(self.values[places.numpy()])
        return SequenceBatch(values * inside[:, :, None], lengths, self.labels[indices])


class LineTable(SequenceTable):
    """Lines of a text, where they are in it.

    Args:
        codes: (P,) of the whole text.
        starts, lengths: (N,) int64 of each line.
        alphabet: the meaning of the codes, for :meth:`fingerprint`.
    """

    def __init__(self, codes: np.ndarray, starts: Tensor, lengths: Tensor, alphabet: str) -> None:
        super().__init__(codes, lengths, starts)
        self.alphabet = alphabet

    def fingerprint(self) -> int:
        """A checksum of the characters and of the lengths of the lines."""
        alphabet = torch.tensor(list(self.alphabet.encode()))
        return loader.checksum(chain(codes_of(self.values, self.starts, self.lengths), [self.lengths, alphabet]))

    def line(self, index: int) -> np.ndarray:
        """The codes of one line."""
        start = int(self.starts[index])
        return self.values[start : start + int(self.lengths[index])]


class _TextOfLines(CharText):
    separators = "\n\r"


class TextLines(LightningDataModule):
    """The distinct lines of a text, each once: no validation or test line is trained on.

    Lines end with ``\\n``, ``\\r\\n`` or ``\\r``. One line tells how many there are of which length::

        names.txt: 32,000 of 33,000 lines kept, 190,000 of 231,000 characters; left out: 600 longer than 30, 300
        duplicates, 100 shorter than 1; 27,200 train, 3,200 val, 1,600 test, split by position

    Args:
        source, root, limit: the text: see :class:`~datamodules.text.CharText`.
        batch_size: lines per rank and batch. Training uses batches of lines of similar length, in an order drawn anew
            each epoch; evaluation uses each line once.
        min_length, max_length: lines of other lengths are left out; in characters, without the line's end.
        val_fraction, test_fraction: shares of the text, or of the lines if these are split at random.
        unknown, vocab, vocab_from: as of :class:`~datamodules.text.CharText`, without the ends of lines.
        split: "position" validates and tests on the end of the text, the test part last: a line belongs to the part in
            which it begins, and to the first one if it occurs again later. For lines that are in some order, such as
            words or names, "random" draws them; the vocabulary is then that of the whole text.
        split_seed: of the random split, independent of the run's.

    Attributes:
        vocab: the characters in the order of their codes, without the ends of lines.
        longest: ``max_length``.
        parts: the lines of "train", "val" and "test", after ``setup``.

    Raises:
        FileNotFoundError: there is no such text.
        ValueError: an argument is out of range; the text is broken, or one of its parts has no line of such a length.
    """

    def __init__(
        self,
        source: str = "python",
        root: str | None = None,
        batch_size: int = 128,
        min_length: int = 1,
        max_length: int = 40,
        val_fraction: float = 0.1,
        test_fraction: float = 0.05,
        unknown: Unknown | None = None,
        limit: int | None = None,
        split: LineSplit = "position",
        split_seed: int = 0,
        vocab: list[str] | None = None,
        vocab_from: str | None = None,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, max_length=max_length)
        at_least(0, min_length=min_length)
        one_of(LineSplit, split=split)
        if min_length > max_length:
            raise ValueError(f"min_length={min_length}: expected at most max_length={max_length}")
        self.batch_size, self.min_length, self.longest = batch_size, min_length, max_length
        self.split, self.split_seed = split, split_seed
        self._shares = {"val": val_fraction, "test": test_fraction}
        self.order_seed = torch.initial_seed()  # of seed_everything
        self.text = _TextOfLines(
            source,
            root,
            batch_size=1,
            seq_len=1,
            split="contiguous" if split == "position" else "rows",  # whose vocabulary is that of the whole text
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            eval_context=0,
            unknown=unknown,
            vocab=vocab,
            vocab_from=vocab_from,
            limit=limit,
        )
        if not {*self.text.separators} & {*self.text.corpus.first_seen}:
            raise ValueError(f"source={source!r}: expected a text of more than one line")
        self.vocab = self.text.vocab
        self.has_test = test_fraction > 0
        self.parts: dict[str, LineTable] = {}
        self.numbers: dict[str, np.ndarray] = {}  # of their lines in the text, from 1 on

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Codes characters as a checkpoint's model does, and leaves out the lines that are longer than its longest.

        Raises:
            ValueError: an unknown character, for which the model's vocabulary has no ``<unk>``; names its place.
        """
        self.longest = int(facts.get("longest", self.longest))
        self.text.adopt(facts)
        self.vocab = self.text.vocab
        return {"vocab", "longest"}

    def prepare_data(self) -> None:
        self.text.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        self.text.setup(stage)
        codes = self.text.codes
        starts, lengths = line_bounds(codes, newline := len(self.vocab), newline + 1)
        counts = {"lines": len(lengths), "characters": int(lengths.sum())}
        too_long, too_short = lengths > self.longest, lengths < self.min_length
        left_out = {f"longer than {self.longest}": too_long.sum(), f"shorter than {self.min_length}": too_short.sum()}
        fits = ~(too_long | too_short)
        # Each array is let go before the next one is made: there may be many lines.
        starts = starts[fits]
        lengths = lengths[fits]
        is_first = first_of_each(codes, starts, lengths)
        left_out["duplicates"] = len(is_first) - is_first.sum()
        starts = starts[is_first]
        lengths = lengths[is_first]
        numbers = np.flatnonzero(fits)[is_first] + 1
        for name, of_part in self._divided(starts).items():
            if not len(of_part):
                raise ValueError(
                    f"source={self.text.source!r}: its {name} part has no new line of {self.min_length} to "
                    f"{self.longest} characters, expected at least one: see min_length, max_length and split"
                )
            begin, length = (torch.from_numpy(each[of_part]).long() for each in (starts, lengths))
            self.parts[name] = LineTable(codes, begin, length, "".join(self.vocab))
            self.numbers[name] = numbers[of_part]
        said = f"{len(lengths):,} of {counts['lines']:,} lines kept, {int(lengths.sum()):,} of {counts['characters']:,}"
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        sizes = ", ".join(f"{len(table):,} {name}" for name, table in self.parts.items())
        how = "by position" if self.split == "position" else f"at random (split_seed {self.split_seed})"
        rank_zero_info(
            f"{self.text.corpus_name}: {said} characters{f'; left out: {reasons}' if reasons else ''}; {sizes}, split "
            f"{how}"
        )

    def _divided(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of each part, of lines that start at these places of the text."""
        if self.split == "position":
            ends = self.text.bounds(self.text.corpus.length)[1 : len(self.part_names) + 1]
            part_of = np.searchsorted(ends, starts, side="right").clip(max=len(ends) - 1)
            return {name: np.flatnonzero(part_of == place) for place, name in enumerate(self.part_names)}
        order = torch.randperm(len(starts), generator=keyed_generator(self.split_seed, "lines"))
        sizes = [round(len(starts) * self._shares[name]) for name in self.part_names[1:]]
        others = order.split([len(starts) - sum(sizes), *sizes])
        return {name: rows.sort().values.numpy() for name, rows in zip(self.part_names, others, strict=True)}

    parts_are_cut = True
    """whether the parts are cut from one whole here"""

    @property
    def part_names(self) -> list[Part]:
        """The parts that there are."""
        return [name for name in get_args(Part) if name != "test" or self.has_test]

    def plain_loader(self, part: str) -> TensorLoader:
        """Every line of a part once over all ranks, in the order of the text."""
        one_of(self.part_names, part=part)
        self.setup()
        return TensorLoader(self.parts[part], self.batch_size)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The number of each line in the text, from 1 on, and the line."""
        table = self.parts[part]
        lines = [decode_chars(table.line(row).tolist(), self.vocab) for row in range(len(table))]
        return {"line": self.numbers[part].tolist(), "text": lines}

    def train_dataloader(self) -> TensorLoader:
        self.setup()
        lines: Any = self.parts["train"]  # what a BucketedLoader needs of sketches is their lengths
        return BucketedLoader(lines, self.batch_size, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        self.setup()
        return TensorLoader(self.parts["val"], self.batch_size)

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        self.setup()
        return TensorLoader(self.parts["test"], self.batch_size) if self.has_test else []

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()


class SketchSequences(LightningDataModule):
    """Sketches as sequences of points: the position of each, and whether the pen is lifted after it.

    See :func:`positions_of`. Order and augmentation are those of the source.

    Args:
        source: the sketches.
        batch_size: sketches per rank and batch; replaces that of the source.

    Attributes:
        sequence_dim: 3.
        scale_factor: what 1 stands for, in units of the drawings: the standard deviation of the training offsets.
        longest: number of points in the longest sketch.
    """

    sequence_dim = 3

    def __init__(self, source: Sketches, batch_size: int = 100) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        self.source = source
        self.batch_size = source.batch_size = batch_size
        self.scale_factor, self.longest = source.scale_factor, source.longest
        self.class_names = source.class_names

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Sketches.adopt`."""
        settled = self.source.adopt(facts)
        self.scale_factor, self.longest = self.source.scale_factor, self.source.longest
        self.class_names = self.source.class_names
        return settled

    parts_are_cut = False
    """whether the parts are cut from one whole here"""

    @property
    def part_names(self) -> list[str]:
        """The parts that there are."""
        return self.source.part_names

    def plain_loader(self, part: str) -> TensorLoader:
        """:meth:`Sketches.plain_loader`."""
        return self.source.plain_loader(part)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """:meth:`Sketches.sample_names`."""
        return self.source.sample_names(part)

    def sequences(self, part: Part) -> Iterator[SequenceBatch]:
        """Every sketch of a part once over all ranks, unchanged."""
        return map(self._positions, TensorLoader(self.source.parts[part], self.batch_size))

    def train_dataloader(self) -> TensorLoader:
        return self.source.train_dataloader()

    def val_dataloader(self) -> TensorLoader:
        return self.source.val_dataloader()

    def test_dataloader(self) -> TensorLoader:
        return self.source.test_dataloader()

    def predict_dataloader(self) -> TensorLoader:
        return self.source.predict_dataloader()

    def on_after_batch_transfer(self, batch: SketchBatch, dataloader_idx: int) -> SequenceBatch:
        return self._positions(self.source.augmented(batch, self.trainer))

    def _positions(self, batch: SketchBatch) -> SequenceBatch:
        return SequenceBatch(positions_of(batch.strokes, batch.lengths), batch.lengths, batch.labels)


class ImageRows(WrappedImages):
    """Images as sequences of their rows from the top down, each of W·C numbers in 0..1.

    Args:
        source: the images.
        batch_size: images per rank and batch; replaces that of the source.

    Attributes:
        sequence_dim: W·C.
        longest: H, the length of each sequence.
    """

    def __init__(self, source: Images, batch_size: int = 128) -> None:
        super().__init__(source, batch_size)
        channels, self.longest, width = source.image_shape
        self.sequence_dim = width * channels

    def sequences(self, part: Part) -> Iterator[SequenceBatch]:
        """Every image of a part once over all ranks."""
        return (self.on_after_batch_transfer(batch, 0) for batch in self.plain_loader(part))

    def to_float(self, batch: ImageBatch) -> ImageBatch:
        """The batch with its images as rows (B, H, W·C) in 0..1."""
        return self._rows(super().to_float(batch))

    def two_views(self, batch: ImageBatch) -> tuple[ImageBatch, ImageBatch]:
        """:meth:`Images.two_views`, from rows to rows."""
        images = batch.images.unflatten(2, (-1, self.source.image_shape[0])).permute(0, 3, 1, 2)
        first, second = self.source.two_views(batch._replace(images=images))
        return self._rows(first), self._rows(second)

    def _rows(self, batch: ImageBatch) -> ImageBatch:
        return batch._replace(images=batch.images.permute(0, 2, 3, 1).flatten(2))

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> SequenceBatch:
        rows, labels = self.to_float(batch)
        return SequenceBatch(rows, torch.full_like(labels, rows.shape[1]), labels)
