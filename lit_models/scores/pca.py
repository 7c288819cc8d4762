"""Principal components of more images than fit in memory as floats."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from common.distributed import world_size


class PCA:
    """Principal component analysis from sums of the samples and of their products, in double precision.

    Args:
        dim: number of values in a sample.
        device: where the sums, dim² numbers, are kept.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.double, device=device)
        self.total = torch.zeros(dim, dtype=torch.double, device=device)
        self.products = torch.zeros(dim, dim, dtype=torch.double, device=device)

    def update(self, samples: Tensor) -> None:
        """Adds samples (B, dim) of this rank."""
        samples = samples.double()
        self.count += len(samples)
        self.total += samples.sum(0)
        self.products += samples.T @ samples

    def compute(self, components: int) -> tuple[Tensor, Tensor]:
        """The mean (dim,) and the strongest components (components, dim) of the samples of all ranks, orthonormal."""
        count, total, products = self.count, self.total, self.products
        if world_size() > 1:
            for sums in (count, total, products):
                dist.all_reduce(sums)
        mean = total / count
        _, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        return mean, vectors.T.flip(0)[:components]


def find_components(samples: Iterable[Tensor], mean: Tensor, components: Tensor) -> None:
    """Writes the mean and the principal components of batches of samples (B, …), those of all ranks.

    Args:
        mean: (dim,); the sums are kept on its device.
        components: (K, dim), the strongest ones.
    """
    pca = PCA(len(mean), mean.device)
    for batch in samples:
        pca.update(batch.to(mean.device).flatten(1))
    for there, found in zip((mean, components), pca.compute(len(components)), strict=True):
        there.copy_(found)
