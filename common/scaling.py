"""From the units of somebody's numbers to those of a network, and back: one shift and one scale for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Scale = Literal["standard", "range", "none"]

LARGEST = 1e150
"""what numbers must be below to be scaled: their squares have to be numbers too"""

LARGEST_SCALED = float(np.finfo(np.float32).max)
"""of a network's numbers"""


class Scaling(NamedTuple):
    """``(value - shift) / scale`` of each of D channels; in double precision, for values far from zero.

    Data have it as a fact, ``scaling._asdict()``, which the model keeps in its checkpoint.
    """

    shift: list[float]
    scale: list[float]

    @classmethod
    def of(cls, series: Sequence[np.ndarray], how: Scale) -> Scaling:
        """What scales series (T, D).

        Args:
            how: "standard" makes the mean of each channel 0 and its deviation 1, "range" its values 0 to 1, over all
                steps of all series; "none" changes nothing. A channel that never changes is only shifted.

        Raises:
            ValueError: a value is too large to be scaled; names it.
        """
        dim = series[0].shape[1]
        if how == "none":
            return cls([0.0] * dim, [1.0] * dim)
        if (largest := max(_largest(each) for each in series)) >= LARGEST:
            raise ValueError(f"the largest value is {largest:g}, expected below {LARGEST:g}: use another unit")
        if how == "range":
            shift = np.min([each.min(0) for each in series], 0).astype(np.float64)
            scale = np.max([each.max(0) for each in series], 0) - shift
        else:
            steps = sum(map(len, series))
            shift = np.sum([each.sum(0, dtype=np.float64) for each in series], 0) / steps
            scale = np.sqrt(np.sum([np.square(each - shift).sum(0) for each in series], 0) / steps)
            constant = np.all([(each == series[0][0]).all(0) for each in series], 0)
            shift = np.where(constant, series[0][0], shift)  # the mean is rounded, and so is its distance from it
            scale = np.where(constant, 0, scale)
        return cls(shift.tolist(), np.where(scale > 0, scale, 1.0).tolist())

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Values (…, D) in the network's units, float64.

        Raises:
            ValueError: one is beyond single precision in these units; names the largest.
        """
        scaled: np.ndarray = (values.astype(np.float64) - self.shift) / self.scale
        if (most := _largest(scaled)) > LARGEST_SCALED:
            raise ValueError(
                f"the largest value is {_largest(values):g}, which is {most:g} in the network's units, expected at "
                f"most {LARGEST_SCALED:g}"
            )
        return scaled

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Values (…, D) in the data's own units, float64."""
        restored: np.ndarray = values.astype(np.float64) * self.scale + self.shift
        return restored


def _largest(values: np.ndarray) -> float:
    """The largest magnitude, 0 of no values."""
    return max(float(values.max(initial=0)), -float(values.min(initial=0)))
