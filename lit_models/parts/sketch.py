"""A drawing as a sequence of pen moves, and as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from common.checks import more_than
from common.drawings import Preparation, to_lines
from common.files import nearest_path
from common.svg import svg_lines

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

END = (0.0, 0.0, 0.0, 0.0, 1.0)


class Sketch:
    """A drawing: N points, each an offset from the one before it, and whether the pen is lifted after it.

    Args:
        points: (N, 3) array or tensor: Δx, Δy in the data's own units (y grows downward, as in SVG) and 1 if the pen is
            lifted after the point, else 0. The first offset leads to the start of the drawing.

    Raises:
        ValueError: a wrong shape, a non-finite number, or a pen state other than 0 and 1.
    """

    def __init__(self, points: object) -> None:
        values = points.detach().float().cpu().numpy() if isinstance(points, Tensor) else points
        self.points: np.ndarray = np.array(values, dtype=np.float32)
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ValueError(f"points of shape {self.points.shape}: expected (N, 3), of Δx, Δy and pen lifted")
        if not np.isfinite(self.points).all():
            raise ValueError("points: expected finite numbers")
        if not np.isin(self.points[:, 2], (0, 1)).all():
            raise ValueError("points: expected 0 or 1 in the last column, whether the pen is lifted after the point")

    def __len__(self) -> int:
        return len(self.points)

    def __repr__(self) -> str:
        return f"Sketch({len(self)} points)"

    def _repr_svg_(self) -> str:
        """The drawing as shown in notebooks."""
        return self.to_svg()

    @classmethod
    def from_rows(cls, rows: Tensor, scale_factor: float) -> Sketch:
        """A sketch from rows (T, 5) of a :class:`~datamodules.sketches.SketchBatch`, up to the first end row."""
        ends = rows[:, 4].nonzero()
        rows = rows[: int(ends[0])] if len(ends) else rows
        return cls(torch.cat([rows[:, :2] * scale_factor, rows[:, 3:4]], 1))

    def to_rows(self, scale_factor: float) -> Tensor:
        """(N + 1, 5) as in a :class:`~datamodules.sketches.SketchBatch`, including the end row."""
        points = torch.from_numpy(self.points)
        lifted = points[:, 2:]
        rows = torch.cat([points[:, :2] / scale_factor, 1 - lifted, lifted, torch.zeros_like(lifted)], 1)
        return torch.cat([rows, torch.tensor([END])])

    @classmethod
    def from_lines(cls, lines: Sequence[ArrayLike], size: float | None = None, epsilon: float = 0.0) -> Sketch:
        """A sketch from the positions that the pen passes each time that it is down: lines (K, 2), a dot has one.

        Args:
            size, epsilon: brought to one size and simplified, as :class:`common.drawings.Preparation` says; by default
                neither.

        Raises:
            ValueError: there is no line, or one is no (K, 2).
        """
        arrays = [np.asarray(line, np.float64) for line in lines]
        for array in arrays:
            if array.ndim != 2 or array.shape[1] != 2 or not len(array):
                raise ValueError(f"a line of shape {array.shape}: expected (K, 2), the positions of its points")
        if not arrays:
            raise ValueError("lines=[]: expected at least one")
        return cls(Preparation(size, epsilon)(arrays))

    @classmethod
    def from_svg(cls, path: str | Path, size: float | None = None, epsilon: float = 0.0) -> Sketch:
        """The drawing of an SVG file: see :func:`common.svg.svg_lines`; ``size``, ``epsilon`` as for from_lines.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no SVG file, or has no lines.
        """
        file = Path(path).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"sketch={file}: no such file{nearest_path(file)}")
        try:
            lines, left_out = svg_lines(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if not lines:
            raise ValueError(f"{file}: no line in it, expected paths or shapes")
        if left_out:
            rank_zero_warn(f"{file}: left out what is not strokes: {', '.join(left_out)}")
        return cls.from_lines(lines, size, epsilon)

    def polylines(self) -> list[np.ndarray]:
        """The lines that the pen draws without being lifted, each (K, 2) positions; a dot is a line of one point."""
        return to_lines(self.points)

    def to_svg(self, path: str | Path | None = None, size: int = 128) -> str:
        """The drawing as an SVG text of ``size`` pixels, also written to ``path`` if given.

        Raises:
            ValueError: the size is not positive.
        """
        more_than(0, size=size)
        lines = self.polylines()
        every = np.concatenate(lines) if lines else np.zeros((1, 2))
        low, high = every.min(0), every.max(0)
        extent = float((high - low).max()) or 1.0  # of a single dot
        pen, margin = 0.015 * extent, 0.05 * extent
        left, top = (low + high) / 2 - extent / 2 - margin
        side = extent + 2 * margin
        places = 5 - math.floor(math.log10(extent))  # what counts is the size of the drawing, not where it is

        def text_of(number: float) -> str:
            return f"{round(float(number), places) + 0.0:.15g}"

        # A dot is a line of no length with a round end.
        paths = (
            "M" + "L".join(f"{text_of(x)} {text_of(y)}" for x, y in (line if len(line) > 1 else line.repeat(2, 0)))
            for line in lines
        )
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
            f'viewBox="{" ".join(map(text_of, (left, top, side, side)))}">\n'
            f'<path d="{" ".join(paths)}" fill="none" stroke="black" stroke-width="{pen:.4g}" '
            'stroke-linecap="round" stroke-linejoin="round"/>\n</svg>\n'
        )
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


def as_sketches(given: Any, preparation: Mapping[str, Any] | None = None) -> list[Sketch]:
    """What a model is asked about, one or several: sketches, or paths of SVG files.

    Args:
        preparation: how the files of the model's training were read: see :class:`common.drawings.Preparation`.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is something else, or there is nothing.
    """
    several = isinstance(given, (list, tuple))
    found = []
    for each in given if several else [given]:
        if isinstance(each, (str, Path)):
            each = Sketch.from_svg(each, **(preparation or {}))
        elif not isinstance(each, Sketch):
            what = "a sketch" if several else "sketches"
            also = "Sketch(points), points (N, 3)" if several else "a Sketch or the path of an SVG file, or a list"
            raise ValueError(f"{what} of type {type(each).__name__}: expected {also}")
        found.append(each)
    return found


def to_strokes(sketches: Sequence[Sketch], scale_factor: float) -> tuple[Tensor, Tensor]:
    """Sketches as the ``strokes`` (B, T, 5) and ``lengths`` (B,) of a batch, padded with end rows.

    Raises:
        ValueError: there are no sketches, one has no points, or something is not a sketch.
    """
    sketches = as_sketches(sketches)
    lengths = torch.tensor([len(sketch) for sketch in sketches])
    if not len(lengths) or lengths.min() == 0:
        raise ValueError(f"sketches of {lengths.tolist()} points: expected some sketches, each with some points")
    strokes = torch.tensor(END).repeat(len(lengths), int(lengths.max()) + 1, 1)
    for row, sketch in zip(strokes, sketches, strict=True):
        row[: len(sketch) + 1] = sketch.to_rows(scale_factor)
    return strokes, lengths
