"""How often a decoder reads the true last element in training instead of its own: Bengio et al. 2015."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "inverse_sigmoid"]


def forcing_probability(step: int, schedule: Schedule, steps: float, floor: float) -> float:
    """ε at ``step`` = 0, 1, …, never below ``floor``: Bengio et al. 2015.

    ``constant`` is ε = floor; ``linear`` falls from 1 to the floor in ``steps``; ``inverse_sigmoid`` is
    k / (k + exp(step / k)) with k = ``steps``.
    """
    if schedule == "constant":
        return floor
    if schedule == "linear":
        return max(floor, 1 - (1 - floor) * step / steps)
    return max(floor, 1 / (1 + math.exp(min(700.0, step / steps - math.log(steps)))))
