"""Sequences of different lengths, and the states of recurrent networks that read or write them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cell = Literal["lstm", "gru"]
State = tuple[Tensor, Tensor] | Tensor
"""(h, c) of an LSTM, h of a GRU; each (layers, B, H)"""


def step_mask(lengths: Tensor, steps: int) -> Tensor:
    """(B, steps) bool: which steps are part of sequences of so many."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def with_end(tokens: Tensor, lengths: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Lines (B, T) with the token ``end`` from each one's end on, (B, T + 1), and their lengths with one such token."""
    inside = F.pad(step_mask(lengths, tokens.shape[1]), (0, 1))
    return torch.where(inside, F.pad(tokens, (0, 1)), end), lengths + 1


def split_state(numbers: Tensor, parts: int, layers: int = 1) -> State:
    """A row of ``numbers`` (B, parts · layers · H) each to the state of as many layers: h in 1 part, (h, c) in 2."""
    h, *c = (part.transpose(0, 1).contiguous() for part in numbers.unflatten(1, (parts, layers, -1)).unbind(1))
    return (h, c[0]) if c else h


def remember(network: nn.RNNBase) -> None:
    """Lets an LSTM's forget gates begin open: a bias of 1 (Jozefowicz et al. 2015), of PyTorch's two one of 0.

    Other cells have none, and stay as they are.
    """
    for name, parameter in network.named_parameters() if isinstance(network, nn.LSTM) else ():
        if name.startswith("bias"):
            parameter.data[network.hidden_size : 2 * network.hidden_size] = float(name.startswith("bias_ih"))
