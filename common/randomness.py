"""Random numbers that depend only on a key and a sample's place in the global batch, whichever rank has the sample."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from common.distributed import rank_and_world_size


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose draws are a function of ``key`` alone, e.g. of (seed, epoch, step, purpose).

    Neighboring keys give unrelated streams. ``manual_seed(seed + epoch)`` would not: seed 1 in epoch 0 would draw the
    same numbers as seed 0 in epoch 1.
    """
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


def draws_of_place(num_samples: int, num_draws: int, *key: int | str) -> Tensor:
    """Uniform draws (num_samples, num_draws) on the CPU, a function of ``key`` and of each sample's place in the batch.

    The place is that in the *global* batch: numbers are drawn for the samples of all ranks, and each rank takes those
    of the samples that :class:`TensorLoader` gave it. So two ranks draw exactly what one would.
    """
    rank, world_size = rank_and_world_size()
    draws = torch.rand(num_samples * world_size, num_draws, generator=keyed_generator(*key), dtype=torch.float32)
    return draws[rank::world_size]


def uniform_of_samples(num_samples: int, num_draws: int, *key: int | str, device: torch.device) -> Tensor:
    """(num_samples, num_draws) in [0, 1): a function of ``key`` and of each sample's place in the global batch.

    Numbers are drawn for the samples of all ranks, and each rank takes its own, as
    :class:`datamodules.parts.loader.TensorLoader` distributes them. So a resumed run repeats them, and two ranks with
    half a batch each draw what one rank with the whole batch does.
    """
    rank, world_size = rank_and_world_size()
    generator = keyed_generator(*key, device=device)
    return torch.rand(num_samples * world_size, num_draws, generator=generator, device=device)[rank::world_size]


def coins_of_samples(probabilities: Tensor, *key: int | str) -> Tensor:
    """0 or 1 for each element of (B, …), 1 with the element's probability, in its type; also a function of ``key``.

    It uses sixteen random bits per element, a quarter of the work of a uniform number: exact at 0 and 1, and off by
    less than 1e-5 elsewhere.
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
    """The same with standard normal draws."""
    rank, world_size = rank_and_world_size()
    count = num_samples * world_size * num_draws
    # torch.randn makes sixteen numbers at a time, and makes the last sixteen anew where some are left over: of a
    # multiple, a last batch that is split draws what the whole one does.
    noise = torch.randn(-(-count // 16) * 16, generator=keyed_generator(*key, device=device), device=device)
    return noise[:count].view(-1, num_draws)[rank::world_size]
