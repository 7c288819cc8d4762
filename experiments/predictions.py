"""What ``predict`` leaves behind: files that a person can use, with the name of each sample beside what was said of it.

``<part>-<n>.csv`` has a row for each prediction: the columns by which the data name the sample, and then what
``predict_step`` returned: texts, numbers, and the files of pictures and drawings, which are in the folder
``<part>-<n>/``. Vectors and larger arrays are in ``<part>-<n>.npz``, beside the same names. Where the field has a
format of its own for results, they are also in ``<part>-<n>_results.json``. Nothing is written over.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from common.checks import nearest
from common.files import write_whole
from experiments.mistakes import Mistake
from experiments.technique import ListsSamples, ReportsResults, mismatch

PARTS = ("train", "val", "test")


def parts_asked_for(asked: str | None, data: object, are_others: bool) -> tuple[str, list[str]]:
    """What is to be predicted in a word, and the parts of the data; none if the data say themselves what to take.

    Args:
        asked: "train", "val", "test", "all", or None: the test part, or all of other data that have no parts of their
            own.
        are_others: whether these are other data than those of the run.

    Raises:
        Mistake: there is no such part; names those that there are.
    """
    if asked is not None and asked not in (*PARTS, "all"):
        raise Mistake(f"part={asked}: expected train, val, test or all{nearest(asked, [*PARTS, 'all'])}")
    if not isinstance(data, ListsSamples) or (reason := mismatch(data, ListsSamples)):
        if asked not in (None, "test"):
            why = reason if isinstance(data, ListsSamples) else f"{type(data).__name__} has no plain_loader(part)"
            raise Mistake(f"part={asked}: expected none, since {why}")
        return "predict", []
    there = list(data.part_names)
    if asked == "all" or (asked is None and are_others and data.parts_are_cut):
        return "all", [*there]
    if (part := asked or "test") not in there:
        raise Mistake(f"part={part}: these data have no {part} part; expected {', '.join(there)} or all")
    return part, [part]


class Predictions(Callback):
    """Collects what ``predict_step`` returns, and writes pictures and drawings as they come.

    Args:
        folder: where the files go.
        label: the beginning of their names.
    """

    def __init__(self, folder: Path, label: str) -> None:
        number = 1
        while any(folder.glob(f"{label}-{number}*")):
            number += 1
        self.stem = folder / f"{label}-{number}"
        self.count = 0
        self.names: dict[str, list[Any]] = {}  # of all samples
        self.rows: list[int] = []  # of those, of each prediction
        self._before, self._of_part = 0, 0  # samples of the parts before, and predictions of this one
        self.columns: dict[str, list[Any]] = {}
        self.arrays: dict[str, list[Tensor]] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        columns = columns_of(outputs)
        rows = columns.pop("row", None)
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise Mistake(f"{type(pl_module).__name__}.predict_step returned {sizes}: expected as many of each")
        size = next(iter(sizes.values()), 0)
        places = range(self._of_part, self._of_part + size) if rows is None else rows
        self.rows += [self._before + int(row) for row in places]
        for name, values in columns.items():
            if isinstance(values, Tensor) and values.dim() == 4 and values.shape[1] in (1, 3):
                self.columns.setdefault(name, []).extend(self._drawn(name, values, png_of, ".png", columns))
            elif isinstance(values, Tensor) and values.dim() > 1:
                self.arrays.setdefault(name, []).append(values.detach().cpu())
            elif len(values) and hasattr(values[0], "to_svg"):
                self.columns.setdefault(name, []).extend(self._drawn(name, values, _drawing, ".svg", columns))
            else:
                listed = values.tolist() if isinstance(values, Tensor) else list(values)
                self.columns.setdefault(name, []).extend(listed)
        self.count += size
        self._of_part += size

    def end_part(self, names: Mapping[str, Sequence[Any]]) -> None:
        """Adds the names of the part whose predictions have come, see :class:`ListsSamples`."""
        for name, values in names.items():
            self.names.setdefault(name, []).extend(values)
        self._before += len(next(iter(names.values())))
        self._of_part = 0

    def _drawn(self, name: str, values: Any, made: Any, suffix: str, columns: Mapping[str, Any]) -> Iterator[str]:
        """Writes a file for each of the values; their names, as the CSV has them."""
        self.stem.mkdir(parents=True, exist_ok=True)
        several = sum(_is_file(each) for each in columns.values()) > 1
        for row, value in enumerate(values, self.count):
            file = self.stem / f"{row:05}{f'_{name}' if several else ''}{suffix}"
            file.write_bytes(made(value))
            yield f"{self.stem.name}/{file.name}"

    def write(self, data: object = None) -> list[Path]:
        """Writes what was collected; the files and the folder that there are now.

        Args:
            data: that were predicted; their results are also written in the format of their field, if they have one.
        """
        named: dict[str, Sequence[Any]] = {
            name: [values[row] for row in self.rows] for name, values in self.names.items()
        }
        named = named or {"row": self.rows}
        files = [self.stem] if self.stem.is_dir() else []
        if self.columns:
            table = io.StringIO()
            writer = csv.writer(table, lineterminator="\n")
            columns = named | self.columns
            writer.writerow(columns)
            writer.writerows(zip(*(map(_cell, values) for values in columns.values()), strict=True))
            files.append(self.stem.with_name(f"{self.stem.name}.csv"))
            write_whole(files[-1], [table.getvalue().encode()])
            if isinstance(data, ReportsResults):
                rows = [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]
                if (results := data.official_results(rows)) is not None:
                    files.append(self.stem.with_name(f"{self.stem.name}_results.json"))
                    write_whole(files[-1], json.dumps(results))
        if self.arrays:
            arrays = {name: torch.cat(parts) for name, parts in self.arrays.items()}
            floats = {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in arrays.items()}
            files.append(self.stem.with_name(f"{self.stem.name}.npz"))
            write_whole(files[-1], [_archive({name: _plain_array(each) for name, each in named.items()} | floats)])
        return files


def columns_of(outputs: object) -> dict[str, Any]:
    """What ``predict_step`` returned as columns, each with a value for each prediction.

    Raises:
        Mistake: it is nothing of the kind.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, Tensor):
        return {"prediction": outputs}
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        if outputs and all(isinstance(each, Mapping) for each in outputs):
            return {name: [each.get(name) for each in outputs] for name in outputs[0]}
        return {"prediction": list(outputs)}
    raise Mistake(
        f"predict_step returned {type(outputs).__name__}: expected a list or a tensor with a row for each sample, or a "
        "dict of them"
    )


def _is_file(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.dim() == 4 and values.shape[1] in (1, 3)
    return bool(len(values)) and hasattr(values[0], "to_svg")


def png_of(image: Tensor) -> bytes:
    """(C, H, W) in 0..1 as PNG."""
    from PIL import Image

    pixels = (255 * image.detach().float().cpu().clamp(0, 1)).round().byte().movedim(0, -1).numpy()
    content = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(content, format="PNG")
    return content.getvalue()


def _drawing(sketch: Any) -> bytes:
    text: str = sketch.to_svg()
    return text.encode()


def _cell(value: object) -> Any:
    """A value as a cell of a table: numbers and texts as they are, lists as JSON."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _archive(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` of arrays of any names; those of ``numpy.savez`` must not be "file"."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return content.getvalue()


def _plain_array(values: Sequence[Any]) -> np.ndarray:
    """Names as an array that NumPy reads without pickle."""
    array = np.asarray(list(values))
    return array if array.dtype.kind in "iufbU" else np.asarray([str(value) for value in values])
