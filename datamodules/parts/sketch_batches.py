"""Batches of sketches: their rows, their augmentation, and the sketches of a part in memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.parts import loader


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
        offsets: (P, 2) of all points, int16 if they are whole numbers that fit, else float32.
        lifted: (P,) bool.
        lengths, starts: (N,) number of points in each sketch, and the position of its first.
        rows: (N,) the place of each sketch among those that were given.
        scale_factor: the divisor of the offsets.
    """

    def __init__(self, sketches: Sequence[np.ndarray], labels: Tensor) -> None:
        points = np.concatenate(sketches)
        offsets = points[:, :2].astype(np.float64)
        are_small = bool((offsets == np.rint(offsets)).all() and np.abs(offsets).max() < 2**15)
        self.offsets = torch.from_numpy(offsets.astype(np.int16 if are_small else np.float32))
        self.lifted = torch.from_numpy(points[:, 2] == 1)
        self.lengths = torch.tensor([len(sketch) for sketch in sketches])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.labels = labels
        self.rows = torch.arange(len(sketches))
        self.scale_factor = 1.0

    def __len__(self) -> int:
        return len(self.lengths)

    def fingerprint(self) -> int:
        """A checksum of the points, the starts of the sketches and the labels."""
        return loader.checksum([self.offsets, self.lifted, self.lengths, self.labels])

    def only(self, kept: Tensor) -> SketchTable:
        """The sketches where ``kept`` (N,) is true, in their order."""
        table, points = copy(self), kept.repeat_interleave(self.lengths)
        table.offsets, table.lifted = self.offsets[points], self.lifted[points]
        table.lengths, table.labels, table.rows = self.lengths[kept], self.labels[kept], self.rows[kept]
        table.starts = table.lengths.cumsum(0) - table.lengths
        return table

    def __getitem__(self, indices: Tensor) -> SketchBatch:
        lengths = self.lengths[indices]
        columns = torch.arange(int(lengths.max()) + 1)
        # Behind its end a sketch reads on in the next one, what to_stroke_5 covers, but not behind the last one's.
        places = (self.starts[indices][:, None] + columns).clamp_(max=len(self.offsets) - 1)
        offsets = self.offsets[places].float() / self.scale_factor
        return SketchBatch(to_stroke_5(offsets, self.lifted[places], lengths), lengths, self.labels[indices])
