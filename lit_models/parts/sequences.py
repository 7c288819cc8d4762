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
    """(B, steps) bool: which steps are part of sequences with these lengths."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def with_end(tokens: Tensor, lengths: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Lines (B, T), each filled with the token ``end`` from its end on, (B, T + 1), and their lengths including one."""
    inside = F.pad(step_mask(lengths, tokens.shape[1]), (0, 1))
    return torch.where(inside, F.pad(tokens, (0, 1)), end), lengths + 1


def split_state(numbers: Tensor, parts: int, layers: int = 1) -> State:
    """Splits ``numbers`` (B, parts · layers · H) into the state of the layers: h for 1 part, (h, c) for 2."""
    h, *c = (part.transpose(0, 1).contiguous() for part in numbers.unflatten(1, (parts, layers, -1)).unbind(1))
    return (h, c[0]) if c else h


def remember(network: nn.RNNBase) -> None:
    """Starts an LSTM's forget gates open: a bias of 1 (Jozefowicz et al. 2015), the second of PyTorch's two being 0.

    Other cells have no forget gates and are unchanged.
    """
    for name, parameter in network.named_parameters() if isinstance(network, nn.LSTM) else ():
        if name.startswith("bias"):
            parameter.data[network.hidden_size : 2 * network.hidden_size] = float(name.startswith("bias_ih"))


def initialize_lstm(lstm: nn.LSTM) -> None:
    """Glorot initialization for input weights, orthogonal for recurrent ones, forget bias 1, other biases 0."""
    hidden = lstm.hidden_size
    for name, parameter in lstm.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.xavier_uniform_(parameter)
        elif name.startswith("weight_hh"):
            for gate in parameter.data.split(hidden):
                nn.init.orthogonal_(gate)
        elif name.startswith(("bias", "gate_bias")):
            nn.init.zeros_(parameter)
        if name.startswith(("bias_ih", "gate_bias")):  # of the LSTM's two biases, one is enough
            parameter.data[hidden : 2 * hidden] = 1
