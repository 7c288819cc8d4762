"""Drawings as the lines of a pen: simplified, brought to one size, and as moves of the pen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.checks import at_least, more_than


def simplified(points: np.ndarray, epsilon: float) -> np.ndarray:
    """A polyline (n, 2) as some of its own points, by Ramer (1972) and Douglas & Peucker (1973).

    Its ends stay, and every point is within ``epsilon`` of the line between its neighbors among those that stay. A
    closed polyline, whose ends are one point, is divided at the point that is farthest from it.
    """
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        between = points[first + 1 : last] - points[first]
        chord = points[last] - points[first]
        if (length := np.hypot(*chord)) > 0:
            distances = np.abs(between[:, 0] * chord[1] - between[:, 1] * chord[0]) / length
        else:
            distances = np.hypot(*between.T)
        if len(distances) and distances.max() > epsilon:
            middle = first + 1 + int(distances.argmax())
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    return points[kept]


def to_stroke_3(lines: Sequence[np.ndarray]) -> np.ndarray:
    """Polylines (n_i, 2) → (Σ n_i, 3) float32: offsets, of which the first is 0, and 1 at each line's last point."""
    positions = np.concatenate(lines)
    lifted = np.zeros(len(positions))
    lifted[np.cumsum([len(line) for line in lines]) - 1] = 1
    offsets = np.diff(positions, axis=0, prepend=positions[:1])
    return np.column_stack([offsets, lifted]).astype(np.float32)


def to_lines(points: np.ndarray) -> list[np.ndarray]:
    """The reverse, from where the first offset leads: a polyline (n_i, 2) float64 for each time that the pen is down.

    A dot is a line of one point.
    """
    positions = points[:, :2].cumsum(0, dtype=np.float64)
    lifted = points[:-1, 2].nonzero()[0] + 1
    return [line for line in np.split(positions, lifted) if len(line)]


def extent_of(lines: Sequence[np.ndarray]) -> float:
    """The longer side of the box around polylines (n_i, 2)."""
    points = np.concatenate(lines)
    return float(np.ptp(points, 0).max())


@dataclass(frozen=True)
class Preparation:
    """How a drawing of any size and density becomes pen moves, as Google prepared the drawings of Quick, Draw!.

    The checkpoint of a model that was trained on drawings prepared so keeps it, and a file that the model is asked
    about goes the same way.

    Args:
        size: what the longer side of each drawing becomes; None leaves the file's own unit.
        epsilon: how far a line may be from what was drawn, after that: see :func:`simplified`. 0 keeps every bend.

    Raises:
        ValueError: one of them is out of range.
    """

    size: float | None = 255.0
    epsilon: float = 2.0

    def __post_init__(self) -> None:
        more_than(0, "or null for the file's own unit", size=self.size)
        at_least(0, "which keeps every bend", epsilon=self.epsilon)

    def __call__(self, lines: Sequence[np.ndarray]) -> np.ndarray:
        """Polylines (n_i, 2), at least one → pen moves (n, 3): see :func:`to_stroke_3`."""
        extent = extent_of(lines)
        scale = 1.0 if self.size is None or extent == 0 else self.size / extent
        scaled = [np.asarray(line, np.float64) * scale for line in lines]
        return to_stroke_3([simplified(line, self.epsilon) for line in scaled] if self.epsilon else scaled)
