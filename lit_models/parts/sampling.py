"""Drawing the next symbol from a language model's logits."""

from __future__ import annotations

import torch
from torch import Tensor

from common.checks import at_least, whole, within
from common.randomness import keyed_generator


def seeded(seed: int | None, device: torch.device, *purpose: str) -> torch.Generator | None:
    """The draws of a seed, or PyTorch's own without one; those of a purpose are unrelated to all others of the seed.

    Raises:
        ValueError: the seed is no whole number.
    """
    if seed is None:
        return None
    whole(-(2**63), seed=seed)
    return keyed_generator(seed, *purpose, device=device) if purpose else torch.Generator(device).manual_seed(seed)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises a ValueError for a temperature below 0 or infinite, a ``top_k`` not 1, 2, …, a ``top_p`` not in (0, 1]."""
    at_least(0, "which takes the likeliest symbol", temperature=temperature)
    within("[0, inf)", temperature=temperature)
    whole(1, top_k=top_k)
    within("(0, 1]", top_p=top_p)


def draw(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, V) → (B,): one symbol per row, from softmax(logits / temperature) restricted to the likeliest symbols.

    Args:
        temperature: 0 takes the likeliest symbol.
        top_k: use only the k likeliest.
        top_p: use only the fewest likeliest symbols that together reach this probability (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(1)
    logits = cut(logits, temperature, top_k, top_p)
    # argmax of log p − log E with E exponential is a draw from p, and needs no sum and no check of it on the host.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log()).argmax(1)


def cut(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits (B, V) divided by a temperature above 0; −∞ for symbols that :func:`draw` leaves out."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[1]:
        kept = logits.topk(top_k, 1)
        logits = torch.full_like(logits, -torch.inf).scatter_(1, kept.indices, kept.values)
    if top_p is not None and top_p < 1:
        ordered, symbols = logits.softmax(1).sort(1, descending=True)
        before = ordered.cumsum(1) - ordered  # a symbol is cut when those before it suffice
        unlikely = torch.zeros_like(before, dtype=torch.bool).scatter_(1, symbols, before >= top_p)
        logits = logits.masked_fill(unlikely, -torch.inf)
    return logits


def inverse_cdf(logits: Tensor, draws: Tensor) -> Tensor:
    """(B,): one symbol per row of softmax(logits) (B, V), where the summed probability passes ``draws`` (B,)."""
    sums = logits.softmax(1).cumsum(1)
    # Scaled to the sum as it was rounded, so that no symbol of probability 0 behind the last is ever drawn.
    return torch.searchsorted(sums, (draws.to(sums.dtype) * sums[:, -1])[:, None], right=True)[:, 0].clamp_max(
        logits.shape[1] - 1
    )
