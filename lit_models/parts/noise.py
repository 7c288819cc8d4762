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
    rank, world_size = rank_and_world_size()
    count = num_samples * world_size * num_draws
    # torch.randn makes sixteen numbers at a time, and makes the last sixteen anew where some are left over: of a
    # multiple, a last batch that is split draws what the whole one does.
    noise = torch.randn(-(-count // 16) * 16, generator=keyed_generator(*key, device=device), device=device)
    return noise[:count].view(-1, num_draws)[rank::world_size]
