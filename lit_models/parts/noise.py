"""Random numbers that belong to a sample of the global batch, whichever rank has it."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.loader import keyed_generator, rank_and_world_size


def uniform_of_samples(num_samples: int, num_draws: int, *key: int | str, device: torch.device) -> Tensor:
    """(num_samples, num_draws) in [0, 1): a function of ``key`` and of each sample's place in the global batch.

    Drawn for the samples of all ranks, of which each takes its own, as :class:`datamodules.loader.TensorLoader` deals
    them out. So a resumed run repeats them, and two ranks with half a batch each draw what one with all of it does.
    """
    rank, world_size = rank_and_world_size()
    generator = keyed_generator(*key, device=device)
    return torch.rand(num_samples * world_size, num_draws, generator=generator, device=device)[rank::world_size]


def normal_of_samples(num_samples: int, num_draws: int, *key: int | str, device: torch.device) -> Tensor:
    """The same, standard normal."""
    uniform = uniform_of_samples(num_samples, num_draws, *key, device=device)
    # Through the inverse of the distribution function: torch.randn's values depend on how many are drawn at once, so
    # that a last, smaller batch would draw others when it is split.
    return torch.special.ndtri(uniform.clamp_(2**-26, 1 - 2**-24))
