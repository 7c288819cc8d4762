"""TimeSeries: numbers that were measured step by step, from arrays, archives and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from common.checks import at_least, one_of, within
from common.facts import listed, refuse_unknown
from common.files import data_root, matching
from common.scaling import Scale, Scaling
from datamodules.parts.image_sets import stratified_order
from datamodules.parts.loader import TensorLoader
from datamodules.parts.series_files import Series, SeriesReader
from datamodules.sequences import SequenceBatch, SequenceTable
from datamodules.sketches import BucketedLoader

Split = Literal["random", "position"]
PARTS = ("train", "val", "test")
HOW = {
    "standard": "scaled by the mean and the deviation of the training part",
    "range": "scaled to 0..1 of the training part",
    "none": "not scaled",
}


class TimeSeries(LightningDataModule):
    """Series of real numbers of any lengths, T steps of D channels, scaled for the network.

    :mod:`datamodules.parts.series_files` says which files there may be. One line tells what was found::

        series.npz: 400 series of 60 to 200 steps, 3 channels; 320 train, 40 val, 40 test, split at random (split_seed
        0); scaled by the mean and the deviation of the training part

    Training uses batches of series of similar length, in an order drawn anew each epoch. Evaluation uses each once, and
    goes through the classes by turns, if there are any.

    Args:
        source: a file, a folder or a glob, either the path itself or below ``root``.
        val_source, test_source: files or folders of the parts, if ``source`` has the training series only.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size: series per rank and batch.
        by: the column of a table that says which series a row belongs to; by default, a table is one series.
        columns: the columns of a table that are channels; by default all but ``by``.
        window: number of steps of the pieces that each series is cut into; without it, series stay whole. Steps that do
            not fill a piece are left out.
        split: which series validate and test where there are no parts: "random" ones, the same share of each class; or
            by "position", the last ones, the test part being the very last.
        val_fraction, test_fraction: shares of the series; without a test part there is nothing to test.
        split_seed: of the random split, independent of the run's.
        scale: how each channel is scaled: see :meth:`common.scaling.Scaling.of`; by the training part.

    Attributes:
        sequence_dim: D.
        longest: T of the longest series of all parts.
        scaling: shift and scale of each channel, as :class:`common.scaling.Scaling` has them: by these a trained model
            takes and gives series in their own units.
        channel_names: the names of a table's columns; otherwise empty.
        class_names: of the labels, in their order.
        parts: the scaled series of "train", "val" and "test", after ``setup``.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: see also :class:`~datamodules.parts.series_files.SeriesReader`; an argument is out of range; there
            are too few series for the parts.
    """

    def __init__(
        self,
        source: str,
        val_source: str | None = None,
        test_source: str | None = None,
        root: str | None = None,
        batch_size: int = 64,
        by: str | None = None,
        columns: list[str] | None = None,
        window: int | None = None,
        split: Split = "random",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        scale: Scale = "standard",
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size)
        at_least(2, "or null for whole series", window=window)
        one_of(Split, split=split)
        one_of(Scale, scale=scale)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        self.source, self.batch_size, self.scale = source, batch_size, scale
        self.split, self.split_seed = split, split_seed
        self.order_seed = torch.initial_seed()  # of seed_everything
        self._shares = {"val": val_fraction, "test": test_fraction}
        self._cuts = ""

        reader = SeriesReader(by, columns)
        given = {"source": source, "val_source": val_source, "test_source": test_source}
        found = {
            argument: reader.read(_below(data_root(root), argument, path), argument).parts
            for argument, path in given.items()
            if path is not None
        }
        self.channel_names, self._notes = list(reader.channel_names), reader.notes
        parts = found.pop("source")
        for argument, other in found.items():
            part = argument.removesuffix("_source")
            if "all" not in other or part in parts:
                both = "has parts of its own" if "all" not in other else f"is a second {part} part"
                raise ValueError(f"{argument}={given[argument]}: {both}, expected the series of one part")
            parts[part] = other["all"]
        if window is not None:
            parts = self._cut(parts, window)
        if found and "all" in parts:
            parts["train"] = parts.pop("all")
        self.parts_are_cut = "all" in parts
        """whether the parts are cut from one whole here"""
        labels = {series.label for part in parts.values() for series in part} - {""}
        self.class_names = sorted(labels, key=lambda name: (int(name) if name.isdecimal() else -1, name))
        self._series = self._divided(parts)
        self.sequence_dim = self._series["train"][0].values.shape[1]
        self.longest = max(len(series.values) for part in self._series.values() for series in part)
        self.scaling: dict[str, list[float]] = Scaling.of(
            [series.values for series in self._series["train"]], scale
        )._asdict()
        self._adopted = False
        self.parts: dict[str, SequenceTable] = {}

    def _cut(self, parts: Mapping[str, Sequence[Series]], window: int) -> dict[str, list[Series]]:
        """The pieces of ``window`` steps of each series; tells how many steps were left out."""
        pieces: dict[str, list[Series]] = {}
        for part, whole in parts.items():
            pieces[part] = [
                Series(series.values[at : at + window], f"{series.name}: steps {at} to {at + window - 1}", series.label)
                for series in whole
                for at in range(0, len(series.values) - window + 1, window)
            ]
            if not pieces[part]:
                most = max(len(series.values) for series in whole)
                hint = ""
                if len(whole) >= window and {series.values.shape for series in whole} == {(most, 1)}:
                    hint = (
                        f"; if this is one recording of {len(whole)} steps and {most} channels, expected an array of "
                        f"shape (1, {len(whole)}, {most})"
                    )
                raise ValueError(f"window={window}: no series is as long, expected at most {most}{hint}")
        steps, kept = (sum(len(each.values) for part in all_of.values() for each in part) for all_of in (parts, pieces))
        if kept < steps:
            self._notes.append(f"{steps - kept} of {steps} steps left out, which do not fill a window of {window}")
        return pieces

    def _divided(self, parts: Mapping[str, list[Series]]) -> dict[str, list[Series]]:
        """The parts, split from a whole or from the training part as far as they are not given."""
        parts = dict(parts)
        lacking = ["val", "test"] if self.parts_are_cut else ["val"] if "val" not in parts else []
        lacking = [part for part in lacking if self._shares[part]]
        if lacking:
            name = "all" if self.parts_are_cut else "train"
            whole = parts.pop(name)
            sizes = {part: max(1, round(len(whole) * self._shares[part])) for part in lacking}
            if len(whole) - sum(sizes.values()) < 1:
                raise ValueError(
                    f"source={self.source}: {len(whole)} series, expected at least {len(lacking) + 1} for the parts "
                    f"train, {', '.join(lacking)}: see 'window', which cuts long ones, and 'by'"
                )
            order = torch.arange(len(whole)).flip(0)
            if self.split == "random":
                order = stratified_order(self._labels(whole), "series", self.split_seed)
            taken, start = dict[str, Tensor](), 0
            for part in reversed(lacking):  # by position, the test part is the last
                taken[part] = order[start : start + sizes[part]]
                start += sizes[part]
            taken["train"] = order[start:]
            self._cuts = "by position" if self.split == "position" else f"at random (split_seed {self.split_seed})"
            parts |= {part: [whole[row] for row in rows.sort().values.tolist()] for part, rows in taken.items()}
        return {part: parts[part] for part in PARTS if part in parts}

    def _labels(self, part: Sequence[Series]) -> Tensor:
        """(N,) the place of each label among the classes, or -1."""
        code = {name: place for place, name in enumerate(self.class_names)}
        return torch.tensor([code.get(series.label, -1) for series in part])

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """Scales channels as a checkpoint's model does, and puts them in its order, by their names.

        Raises:
            ValueError: a channel that the model does not know; names it.
        """
        names = list(facts.get("channel_names") or ())
        if names and self.channel_names:
            refuse_unknown("channel_names", self.channel_names, names)
            if len(names) == len(self.channel_names):  # otherwise the number of channels stands in the way
                order = [self.channel_names.index(name) for name in names]
                self._series = {
                    part: [series._replace(values=series.values[:, order]) for series in of_part]
                    for part, of_part in self._series.items()
                }
        self.channel_names = names or self.channel_names
        self.scaling = dict(facts.get("scaling") or self.scaling)
        self.longest = int(facts.get("longest", self.longest))
        self._adopted = True
        return {"scaling", "channel_names", "longest"}

    def setup(self, stage: str | None = None) -> None:
        if self.parts:
            return
        scaling = Scaling(**self.scaling)
        for part, series in self._series.items():
            values = np.concatenate([scaling.apply(each.values).astype(np.float32) for each in series])
            lengths = torch.tensor([len(each.values) for each in series])
            self.parts[part] = SequenceTable(values, lengths, labels=self._labels(series))
        rank_zero_info(f"{self.source}: {self.found()}")

    def found(self) -> str:
        """What there is: ``9 series of 60 to 200 steps, 1 channel; 7 train, 1 val, 1 test, split at random …``."""
        lengths = [len(series.values) for part in self._series.values() for series in part]
        steps = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{max(lengths)}"
        names = f" ({listed(self.channel_names)})" if self.channel_names else ""
        plural = "s" if self.sequence_dim > 1 else ""
        classes = f", {len(self.class_names)} classes ({listed(self.class_names)})" if self.class_names else ""
        what = f"{len(lengths)} series of {steps} steps, {self.sequence_dim} channel{plural}{names}{classes}"
        sizes = [f"{len(part)} {name}" for name, part in self._series.items()]
        if "test" not in self._series:
            sizes.append("no test")
        how = f", split {self._cuts}" if self._cuts else ""
        scaled = "scaled as the checkpoint's" if self._adopted else HOW[self.scale]
        constant = [i for i, unit in enumerate(self._spread()) if unit == 0]
        said = [what, f"{', '.join(sizes)}{how}", scaled]
        if constant:
            said.append(f"channel {', '.join(map(str, constant))} never changes in the training part")
        if too_long := sum(length > self.longest for length in lengths):
            said.append(f"{too_long} longer than {self.longest} steps, the most that the model writes")
        return "; ".join([*said, *self._notes])

    def _spread(self) -> np.ndarray:
        """(D,): by how much each channel changes in training."""
        train = [series.values for series in self._series["train"]]
        spread: np.ndarray = np.max([each.max(0) for each in train], 0) - np.min([each.min(0) for each in train], 0)
        return spread

    @property
    def part_names(self) -> list[str]:
        """The parts that there are."""
        return list(self._series)

    def plain_loader(self, part: str) -> TensorLoader:
        """Every series of a part once over all ranks, in the order of the source."""
        one_of(self.part_names, part=part)
        self.setup()
        return TensorLoader(self.parts[part], self.batch_size)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """Where each series is from, its number of steps and its class."""
        series = self._series[part]
        columns: dict[str, Sequence[Any]] = {
            "series": [each.name for each in series],
            "steps": [len(each.values) for each in series],
        }
        return columns | ({"class": [each.label for each in series]} if self.class_names else {})

    def sequences(self, part: str) -> Iterator[SequenceBatch]:
        """Every series of a part once over all ranks, scaled."""
        return iter(self.plain_loader(part))

    def train_dataloader(self) -> TensorLoader:
        self.setup()
        series: Any = self.parts["train"]  # what a BucketedLoader needs of sketches is their lengths
        return BucketedLoader(series, self.batch_size, drop_last=True, seed=self.order_seed)

    def val_dataloader(self) -> TensorLoader:
        return self._by_turns("val")

    def test_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self._by_turns("test") if "test" in self._series else []

    def predict_dataloader(self) -> TensorLoader | list[TensorLoader]:
        return self.test_dataloader()

    def _by_turns(self, part: str) -> TensorLoader:
        """Every series once, each batch of all classes as far as possible."""
        loader = self.plain_loader(part)
        order = stratified_order(self.parts[part].labels, "by turns", 0)
        return loader.in_order(order) if self.class_names else loader


def _below(root: Path, argument: str, path: str) -> str:
    """A path as it is, or below the root where it exists only there."""
    if not path:
        raise ValueError(f"{argument}='': expected a file, a folder or a glob")
    own = Path(path).expanduser()
    below = root / own
    return str(below if matching(str(below)) and not matching(str(own)) else own)
