"""SketchFiles: drawings of one's own, from .npz, Quick, Draw!'s .ndjson or .svg files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from common.checks import at_least, one_of, within
from common.drawings import Preparation
from common.files import data_root
from datamodules.parts.drawing_files import Drawing, DrawingFiles, by_part
from datamodules.parts.sketch_batches import SketchTable
from datamodules.sketches import Sketches

Prepare = Literal["auto", "all", "none"]


class SketchFiles(Sketches):
    """Drawings of one's own: a file, or a folder or an archive of files, with classes and parts or without.

    :class:`~datamodules.parts.drawing_files.DrawingFiles` says which forms there are. One line tells what was found::

        drawings: 60 drawings of 2 classes (cat, house); 49 train, 5 val, 6 test (test and val cut from the rest)

    Args:
        path: the ``.npz``, ``.ndjson`` or ``.svg`` file, the folder, the ``.zip`` or the ``.tar``, either the path
            itself or below ``root``.
        size, epsilon: lines as somebody drew them are scaled until their longer side is ``size`` (null leaves the
            file's unit), and simplified to within ``epsilon`` of that unit (0 keeps every bend): as Google prepared
            Quick, Draw! for sketch-rnn. See :class:`common.drawings.Preparation`.
        prepare: which drawings are: ``auto`` those of ``.svg`` files and of ``.ndjson`` files with times, ``all``, or
            ``none``.
        max_points: leave out drawings of more points, and say how many; by default as sketch-rnn. Null keeps all.
        val_fraction, test_fraction: the share of each class for a part that the files lack; 0 means no test part.
        split_seed: of what is cut and of ``limit``, independent of the run's.
        limit: train on this many drawings only, each class in proportion; by default on all.
        root: the data folder, by default ``LIT_DATA`` or ``data/``.
        batch_size, random_scale, point_drop: see :class:`~datamodules.sketches.Sketches`.

    Attributes:
        preparation: ``size`` and ``epsilon``, by which a model reads the files that it is asked about.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: an argument is out of range, or files are broken, see ``DrawingFiles``; too few drawings.
    """

    def __init__(
        self,
        path: str,
        size: float | None = 255.0,
        epsilon: float = 2.0,
        prepare: Prepare = "auto",
        max_points: int | None = 250,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
        root: str | None = None,
        batch_size: int = 100,
        random_scale: float = 0.15,
        point_drop: float = 0.1,
    ) -> None:
        super().__init__(batch_size, random_scale, point_drop, max_points)
        one_of(Prepare, prepare=prepare)
        within("(0, 1)", val_fraction=val_fraction)
        within("[0, 1)", test_fraction=test_fraction)
        at_least(1, "or null for all", limit=limit)
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.limit, self.prepare = limit, prepare
        given, below = Path(path).expanduser(), data_root(root) / path
        self.path = below if below.exists() and not given.exists() else given
        how = Preparation(size, epsilon)
        self._listed: dict[str, list[Drawing]] = {}
        self._read(Preparation(None, 0) if prepare == "none" else how)

    def _read(self, preparation: Preparation) -> None:
        self.preparation = asdict(preparation)
        found = DrawingFiles(self.path, preparation, self.prepare == "all")
        names = sorted({drawing.label for drawing in found.drawings} - {""})
        codes = {name: code for code, name in enumerate(names)} | {"": -1}
        self.class_names = names
        self._listed = dict(by_part(found.drawings))
        tables = {
            part: SketchTable([each.points for each in some], torch.tensor([codes[each.label] for each in some]))
            for part, some in self._listed.items()
        }
        # What is listed is for its name: the points are in the table.
        self._listed = {
            part: [each._replace(points=each.points[:0]) for each in some] for part, some in self._listed.items()
        }
        self.hold(tables, str(self.path), found.notes)

    def adopt(self, facts: Mapping[str, Any]) -> set[str]:
        """:meth:`Sketches.adopt`; and files are read as the model's own drawings were."""
        if facts.get("preparation") and facts["preparation"] != self.preparation:
            self._read(Preparation(**facts["preparation"]))
        return super().adopt(facts)

    def sample_names(self, part: str) -> dict[str, Sequence[Any]]:
        """The file of each drawing, its place in it, and its class."""
        columns = super().sample_names(part)
        listed = self._listed.get("all" if self.parts_are_cut else part) or self._listed["train"]
        drawings = [listed[row] for row in columns.pop("row")]
        return {"file": [each.file for each in drawings], "row": [each.row for each in drawings], **columns}
