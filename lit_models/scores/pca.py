"""Principal components of more images than fit in memory as floats, or of few large ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from common.decompositions import MOST, gram, refuse_large
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
        components: (K, dim), the strongest ones; where there are fewer, the rest becomes 0.

    Raises:
        ValueError: the samples and their values are both more than :data:`common.decompositions.MOST`.
    """
    if len(mean) > MOST:
        found = components_of_few(samples, len(mean), len(components), mean.device)
    else:
        pca = PCA(len(mean), mean.device)
        for batch in samples:
            pca.update(batch.to(mean.device).flatten(1))
        found = pca.compute(len(components))
    for there, values in zip((mean, components), found, strict=True):
        there.copy_(values)


def components_of_few(
    samples: Iterable[Tensor], dim: int, components: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """:meth:`PCA.compute` of fewer samples than values, by the products of samples, which are smaller than dim².

    X = U S Vᵀ for centered samples X: the components are the rows of Vᵀ = S⁻¹ Uᵀ X.
    """
    kept, count = [], 0
    for batch in samples:
        kept.append(batch.to(device).flatten(1).float())
        count += len(batch)
        refuse_large("principal components", count * world_size(), dim)
    x = _of_all_ranks(torch.cat(kept))
    refuse_large("principal components", len(x), dim)
    mean = x.mean(0, dtype=torch.double)
    x -= mean
    squares, left = torch.linalg.eigh(gram(x))
    there = squares > 1e-10 * squares[-1]  # the rest is rounding: centered samples are dependent
    strongest = (left[:, there] / squares[there].sqrt()).T.flip(0)[:components].to(x.dtype)
    found = x.new_zeros(components, dim)
    found[: len(strongest)] = strongest @ x
    return mean, found


def _of_all_ranks(rows: Tensor) -> Tensor:
    """(n, …) of each rank → all of them on every rank, in the order of the ranks."""
    if world_size() == 1:
        return rows
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])
