"""Codes as people hand them over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lit_models.parts.latent import as_codes
from lit_models.parts.sampling import check_sampling

WEIGHT = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("codes", [torch.ones(2, 3), torch.ones(2, 3).half(), np.ones((2, 3)), np.ones((2, 3), int)])
def test_numbers_become_codes_in_the_precision_of_the_model(codes: Any) -> None:
    assert torch.equal(as_codes(codes, 3, WEIGHT), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("codes", "error", "words"),
    [
        (torch.ones(3), ValueError, r"z of shape \(3,\): expected codes \(B, 3\)"),
        (torch.ones(2, 4), ValueError, r"z of shape \(2, 4\): expected codes \(B, 3\)"),
        (torch.ones(0, 3), ValueError, r"z of shape \(0, 3\): expected codes"),
        ([[1.0, 2.0, 3.0]], TypeError, r"z of type list: expected codes \(B, 3\)"),
        (np.array(["a"]), TypeError, "z of type ndarray"),
    ],
)
def test_other_things_are_refused(codes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_codes(codes, 3, WEIGHT)


def test_no_temperature_is_infinite() -> None:
    with pytest.raises(ValueError, match=r"temperature=inf: expected a number in \[0, inf\)"):
        check_sampling(float("inf"), None, None)
