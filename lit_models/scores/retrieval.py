"""How well distances between embeddings reflect likeness: retrieval, and the verification of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2**24
"""number of distances in a block: 64 MB"""
BINS = 2000


def blocks_of_distances(z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Euclidean distances between all of z (N, D), some rows at a time: (rows (n,), distances (n, N))."""
    z = z.float()
    for rows in torch.arange(len(z), device=z.device).split(max(1, BLOCK // len(z))):
        yield rows, torch.cdist(z[rows], z)


def retrieval_scores(z: Tensor, labels: Tensor, ks: tuple[int, ...] = (1, 10)) -> dict[str, Tensor]:
    """Each image as a query to all the others (Musgrave, Belongie & Lim 2020, section 2.3).

    With R the number of other images of the query's class: ``recall_at_k``, whether one of the k nearest has its class;
    ``r_precision``, the share of its class among the R nearest; and ``map_at_r``, 1/R Σ_{i ≤ R} P(i), where P(i) is
    that share among the i nearest if the i-th has its class, and 0 otherwise.

    Args:
        z: embeddings (N, D).
        labels: their classes (N,).

    Returns:
        by name, the score (M,) of each of the M queries that are not alone in their class.
    """
    _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
    others = counts[classes] - 1
    depth = min(max(int(others.max()), *ks), len(z) - 1)
    scores: dict[str, list[Tensor]] = {}
    for rows, distances in blocks_of_distances(z):
        distances[torch.arange(len(rows)), rows] = torch.inf
        nearest = distances.topk(depth, largest=False).indices
        kept = others[rows] > 0
        hits = (labels[nearest] == labels[rows, None])[kept]
        number = others[rows][kept]
        place = torch.arange(1, depth + 1, device=z.device)
        within = (place <= number[:, None]) & hits
        found = {f"recall_at_{k}": hits[:, :k].any(1).float() for k in ks}
        found["r_precision"] = within.sum(1) / number
        # Sums of integers, for a GPU's of floats are in no certain order.
        found["map_at_r"] = (within * hits.cumsum(1, dtype=torch.int) / place).sum(1) / number
        for name, values in found.items():
            scores.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in scores.items()}


def nearest_of(z: Tensor, gallery: Tensor) -> Tensor:
    """The row (M,) of the nearest element of the gallery (N, D) for each of z (M, D)."""
    blocks = z.float().split(max(1, BLOCK // len(gallery)))
    return torch.cat([torch.cdist(block, gallery.float()).argmin(1) for block in blocks])


def bootstrap_interval(values: Tensor, level: float = 0.95, rounds: int = 1000) -> tuple[float, float]:
    """The percentile interval of the mean of ``values`` (N,) over resampled queries; the draws are always the same.

    NaN if there are no values.
    """
    if not len(values):
        return math.nan, math.nan
    generator = torch.Generator(values.device).manual_seed(0)
    means = torch.stack(
        [
            values[torch.randint(len(values), (len(values),), generator=generator, device=values.device)].mean()
            for _ in range(rounds)
        ]
    )
    low, high = means.quantile(means.new_tensor([(1 - level) / 2, (1 + level) / 2])).tolist()
    return low, high


class Verification(NamedTuple):
    """The distances of pairs within one class and of pairs from two."""

    edges: Tensor
    """(BINS + 1,) edges of the histograms' bins"""
    positives: Tensor
    """(BINS,) int64: counts of pairs of one class"""
    negatives: Tensor
    """(BINS,) int64: counts of pairs of two"""
    positive_distance: float
    """mean distance of the pairs of one class, NaN if there are none"""
    negative_distance: float
    """mean distance of the pairs of two"""

    def rates(self) -> tuple[Tensor, Tensor]:
        """(BINS + 1,) each: the shares of positive and of negative pairs whose distance is below each edge."""
        true, false = (F.pad(counts.cumsum(0), (1, 0)).double() for counts in (self.positives, self.negatives))
        return true / true[-1], false / false[-1]

    def auc(self) -> float:
        """The area under the ROC curve: the probability that a positive pair is nearer than a negative one."""
        true, false = self.rates()
        return float(torch.trapezoid(true, false))

    def best_threshold(self) -> float:
        """The distance that separates the two best, with the highest :meth:`accuracy`; NaN if one has no pairs."""
        true, false = self.rates()
        if (true - false).isnan().any():
            return math.nan
        return float(self.edges[(true - false).argmax()])

    def accuracy(self, threshold: float) -> float:
        """The mean of the shares of positive pairs below the threshold and of negative pairs above it.

        The mean of the two, since there are many more negative pairs.
        """
        true, false = self.rates()
        place = torch.searchsorted(self.edges, torch.tensor(threshold, device=self.edges.device)).clamp(max=BINS)
        return float(true[place] + 1 - false[place]) / 2


def verification(z: Tensor, labels: Tensor) -> Verification:
    """The distances of all pairs of embeddings (N, D) with classes (N,), up to a bin width: a 2000th of the largest."""
    z = z.float()
    # No two points are further apart than twice the largest distance from their mean.
    most = float(2 * (z - z.mean(0)).norm(dim=1).max()) or 1.0
    counts = torch.zeros(2, BINS, dtype=torch.long, device=z.device)
    sums = torch.zeros(2, dtype=torch.double, device=z.device)
    for rows, distances in blocks_of_distances(z):
        later = rows[:, None] < torch.arange(len(z), device=z.device)
        same = labels[rows, None] == labels
        for kind, pairs in enumerate((later & same, later & ~same)):
            found = distances[pairs]
            # The largest of all may be rounded to more than the bound.
            counts[kind] += (found / most * BINS).int().clamp_(max=BINS - 1).bincount(minlength=BINS)
            sums[kind] += found.sum(dtype=torch.double)
    edges, means = torch.linspace(0, most, BINS + 1, device=z.device), sums / counts.sum(1)
    return Verification(edges, *counts, *means.tolist())
