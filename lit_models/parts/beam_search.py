"""Beam search: finds the likeliest sentences of a step-by-step model, keeping several at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common.checks import at_least

State = tuple[Tensor, ...]
"""what a model carries from step to step, with one row per sentence"""

Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""the last token (R,) and the state of R sentences → log p of each next token (R, V), and the new state"""


class Beams(NamedTuple):
    """The best sentences of each of B rows, the best first."""

    tokens: Tensor
    """(B, n, T) the words, with ``end`` after the last"""
    lengths: Tensor
    """(B, n) number of words in each"""
    scores: Tensor
    """(B, n) log p / steps^length_penalty; −∞ if there is no further sentence"""


@torch.no_grad()
def beam_search(
    step: Step,
    state: State,
    end: int,
    beam_size: int,
    longest: int,
    length_penalty: float = 1.0,
    count: int = 1,
) -> Beams:
    """The ``count`` best sentences that a beam of ``beam_size`` finds for each row of ``state``.

    A sentence of T words takes T + 1 steps if it ends by itself, and T = ``longest`` steps if the limit cuts it off.
    Both kinds are compared by log p / steps^length_penalty, so there is always an answer, even from a model that never
    draws ``end``. In each step, every sentence of the beam is also tried with its end, so that a sentence likely enough
    to be kept is never lost because it is finished.

    A row's result does not depend on the other rows. The search stops when no row can improve: log p only falls, and no
    sentence takes more than ``longest`` steps.

    Args:
        step: see :data:`Step`; a token that must not occur has log p = −∞.
        state: of B sentences that have not started; ``end`` is the token before their first word.
        length_penalty: 0 compares log p itself, which favors short sentences; 1 compares its mean per step.

    Raises:
        ValueError: a number is out of range; more sentences are requested than the beam has.
    """
    at_least(1, beam_size=beam_size, longest=longest)
    at_least(0, length_penalty=length_penalty)
    if not 1 <= count <= beam_size:
        raise ValueError(f"n={count}: expected 1 to beam_size={beam_size}")
    batch, device = len(state[0]), state[0].device
    state = tuple(s.repeat_interleave(beam_size, 0) for s in state)
    row = torch.arange(batch, device=device)[:, None]
    last = torch.full((batch * beam_size,), end, device=device)
    words = torch.full((batch, beam_size, longest), end, device=device)  # of what goes on
    done = torch.full((batch, count, longest), end, device=device)  # the best of what has ended
    total, best = None, None

    for t in range(longest):
        log_p, state = step(last, state)
        vocabulary = log_p.shape[1]
        log_p = log_p.view(batch, beam_size, vocabulary)
        if total is None or best is None:  # all of the beam is the empty sentence: once is enough
            total = log_p.new_full((batch, beam_size), -torch.inf)
            total[:, 0] = 0
            best = log_p.new_full((batch, count), -torch.inf)
        each = total[:, :, None] + log_p
        best, done = better(best, done, each[:, :, end] / (t + 1) ** length_penalty, words)

        each[:, :, end] = -torch.inf
        total, place = each.flatten(1).topk(beam_size, 1)  # V is larger than the beam, or its rest is −∞
        source, last = place // vocabulary, place % vocabulary
        words = words[row, source]
        words[:, :, t] = last
        state = tuple(s.index_select(0, (row * beam_size + source).flatten()) for s in state)
        last = last.flatten()
        if bool((best[:, -1] >= total[:, 0] / longest**length_penalty).all()):
            break
    assert total is not None
    assert best is not None
    best, done = better(best, done, total / (t + 1) ** length_penalty, words)
    return Beams(done, (done != end).sum(2), best)


def better(best: Tensor, done: Tensor, scores: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The best of sentences ``done`` (B, n, T) with scores (B, n), and of others, (B, K, T) and (B, K)."""
    best, place = torch.cat([best, scores], 1).topk(best.shape[1], 1)
    row = torch.arange(len(best), device=best.device)[:, None]
    return best, torch.cat([done, words], 1)[row, place]
