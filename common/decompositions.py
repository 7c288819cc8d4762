"""Products of many rows with each other, on their cheaper side, and what of that is too large."""

from __future__ import annotations

import torch
from torch import Tensor

from common.memory import gigabytes

MOST = 8192
"""rows of a matrix whose eigenvectors take a minute or two on a few CPU cores; the time grows with the cube"""
BLOCK = 2**24
"""numbers that are made double at a time: 128 MB"""


def gram(rows: Tensor) -> Tensor:
    """(N, D) → (N, N) float64: the products of rows with each other, in double precision, without a copy of all."""
    found = rows.new_zeros(len(rows), len(rows), dtype=torch.double)
    for block in rows.split(max(1, BLOCK // max(1, len(rows))), 1):
        block = block.double()
        found.addmm_(block, block.T)
    return found


def refuse_large(what: str, count: int, dims: int) -> None:
    """Raises ValueError if neither the products of ``count`` rows nor those of ``dims`` columns can be decomposed."""
    side = min(count, dims)
    if side > MOST:
        raise ValueError(
            f"{what} of {count} rows of {dims} numbers: needs the eigenvectors of {side}×{side} products, about "
            f"{gigabytes(3 * 8 * side**2)} and hours; expected at most {MOST} rows, or as many numbers in each"
        )
