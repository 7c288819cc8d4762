"""Scaling: units far from those of everyday are right, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from common.scaling import Scaling


@pytest.mark.parametrize("unit", [1e20, 1e-20, 1e140])
@pytest.mark.parametrize("how", ["standard", "range"])
def test_large_and_small_units_come_back_right(unit: float, how: str) -> None:
    series = unit * np.random.default_rng(0).normal([3, -2], [1, 5], (40, 2))
    scaling = Scaling.of([series], how)  # type: ignore[arg-type]
    scaled = scaling.apply(series).astype(np.float32)
    assert 0.5 < np.ptp(scaled, 0).min() <= np.ptp(scaled, 0).max() < 10
    np.testing.assert_allclose(scaling.undo(scaled), series, atol=1e-5 * np.ptp(series))


def test_units_beyond_numbers_are_refused() -> None:
    huge = np.array([[1.0], [-1e200]])
    for how in ("standard", "range"):
        with pytest.raises(ValueError, match=r"the largest value is 1e\+200, expected below 1e\+150: use another unit"):
            Scaling.of([np.ones((3, 1)), huge], how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the largest value is 1e\+200, which is 1e\+200 in the network's units"):
        Scaling.of([huge], "none").apply(huge)
    with pytest.raises(
        ValueError, match=r"largest value is 1e\+40, which is 2e\+40 in .*, expected at most 3.40282e\+38"
    ):
        Scaling([0.0], [0.5]).apply(np.array([[1e40]]))
