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


def coins_of_samples(probabilities: Tensor, *key: int | str) -> Tensor:
    """0 or 1 of each element of (B, …), 1 with its probability, in its type: a function of the same.

    From sixteen random bits each, which is a quarter of the work of a uniform number each: exact at 0 and 1, and
    elsewhere off by less than 1e-5.
    """
    rank, world_size = rank_and_world_size()
    size = probabilities[0].numel()
    count = len(probabilities) * world_size * size
    device = probabilities.device
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    bits.random_(-(2**63), None, generator=keyed_generator(*key, device=device))
    draws = bits.view(torch.int16)[:count].view(-1, size)[rank::world_size].view_as(probabilities)
    return draws.float().add_(2**15 + 0.5).div_(2**16).lt_(probabilities).to(probabilities.dtype)


def normal_of_samples(num_samples: int, num_draws: int, *key: int | str, device: torch.device) -> Tensor:
    """The same, standard normal."""
    rank, world_size = rank_and_world_size()
    count = num_samples * world_size * num_draws
    # torch.randn makes sixteen numbers at a time, and makes the last sixteen anew where some are left over: of a
    # multiple, a last batch that is split draws what the whole one does.
    noise = torch.randn(-(-count // 16) * 16, generator=keyed_generator(*key, device=device), device=device)
    return noise[:count].view(-1, num_draws)[rank::world_size]
