"""Recurrent layers: trained with PyTorch's fused kernels, inspected by a step-by-step twin on the same weights."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from common.checks import at_least, one_of, within

Cell = Literal["rnn", "lstm", "gru"]
State = list[tuple[Tensor, ...]]
"""of each layer: (h,), or (h, c) for the LSTM; each (1, B, H)"""

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentStack(nn.Module):
    """Stacked recurrent layers: (B, T, I) → (B, T, H), with the state after the last step.

    Args:
        input_dim, hidden, layers: sizes.
        dropout: on each layer's output.
        locked: use one dropout mask for all time steps of a sequence (Gal & Ghahramani 2016) instead of one per step.
        weight_drop: DropConnect on the recurrent matrices, one mask for all time steps (Merity et al. 2018).
        layer_norm: normalize each layer's output.

    Raises:
        ValueError: an unknown cell, or a size or share out of range.
    """

    def __init__(
        self,
        cell: Cell,
        input_dim: int,
        hidden: int,
        layers: int,
        dropout: float = 0.0,
        locked: bool = False,
        weight_drop: float = 0.0,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        one_of(Cell, cell=cell)
        at_least(1, hidden=hidden, layers=layers)
        within("[0, 1)", dropout=dropout, weight_drop=weight_drop)
        self.cell = cell
        self.dropout, self.locked, self.weight_drop = dropout, locked, weight_drop
        sizes = [input_dim] + [hidden] * (layers - 1)
        # One module a layer, so that what stands between the layers is free; as fast as one module of all layers.
        self.layers = nn.ModuleList(CELLS[cell](size, hidden, batch_first=True) for size in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) if layer_norm else nn.Identity() for _ in sizes)

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        outputs, after = inputs, []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            outputs, last = self._run(layer, outputs, state[i] if state else None)
            outputs = self.drop(norm(outputs))
            after.append(last)
        return outputs, after

    def _run(
        self, layer: nn.Module, inputs: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = state if state is None or self.cell == "lstm" else state[0]
        if self.training and self.weight_drop:
            dropped = {"weight_hh_l0": F.dropout(layer.get_parameter("weight_hh_l0"), self.weight_drop)}
            outputs, last = functional_call(layer, dropped, (inputs, given))
        else:
            outputs, last = layer(inputs, given)
        return outputs, last if self.cell == "lstm" else (last,)

    def drop(self, outputs: Tensor) -> Tensor:
        """(B, T, H) after the dropout between the layers."""
        if not self.locked:
            return F.dropout(outputs, self.dropout, self.training)
        return outputs * F.dropout(torch.ones_like(outputs[:, :1]), self.dropout, self.training)

    def open(self, inputs: Tensor, state: State | None = None) -> list[dict[str, list[Tensor]]]:
        """The result of :func:`unroll` for each layer; without dropout, as in evaluation."""
        opened = []
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            opened.append(unroll(layer, inputs, state[i] if state else None))
            inputs = norm(torch.stack(opened[-1]["h"], 1))
        return opened


class SteppedLSTM(nn.LSTM):
    """An LSTM of one layer with features that no fused kernel has: norms inside the cell, and dropout of its candidate.

        i, f, g, o = LN(U x_t + W h_{t-1})      each gate normalized over its units (Ba, Kiros & Hinton 2016)
        c_t = f ⊙ c_{t-1} + i ⊙ dropout(g)      recurrent dropout without memory loss (Semeniuta et al. 2016)
        h_t = o ⊙ tanh LN(c_t)

    It is called like ``nn.LSTM(input_dim, hidden, batch_first=True)``. Without norms it has the same parameters, and
    computes the same if nothing is dropped. U x_t is one product for all steps; the rest is a loop over them.

    Args:
        layer_norm: use the norms, whose own biases replace the LSTM's.
        recurrent_dropout: share of the candidates that is dropped in training, drawn anew in each step.
    """

    def __init__(self, input_dim: int, hidden: int, layer_norm: bool = False, recurrent_dropout: float = 0.0) -> None:
        super().__init__(input_dim, hidden, batch_first=True, bias=not layer_norm)
        within("[0, 1)", recurrent_dropout=recurrent_dropout)
        self.recurrent_dropout = recurrent_dropout
        self.gate_scale = nn.Parameter(torch.ones(4 * hidden)) if layer_norm else None
        self.gate_bias = nn.Parameter(torch.zeros(4 * hidden)) if layer_norm else None
        self.cell_norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()

    def forward(  # type: ignore[override]
        self, inputs: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Inputs (B, T, I) and a state (h, c), each (1, B, H) → outputs (B, T, H) and the state after the last step."""
        weight_x, weight_h, *biases = (self.get_parameter(name) for name in self._flat_weights_names)
        bias = biases[0] + biases[1] if biases else None
        projected = F.linear(inputs.transpose(0, 1), weight_x, bias)
        zeros = projected.new_zeros(inputs.shape[0], self.hidden_size)
        h, c = (state[0][0], state[1][0]) if state else (zeros, zeros)
        outputs = []
        for x in projected.unbind(0):
            gates = x + F.linear(h, weight_h)
            if self.gate_scale is not None and self.gate_bias is not None:
                normal = F.layer_norm(gates.unflatten(1, (4, -1)), (self.hidden_size,)).flatten(1)
                gates = torch.addcmul(self.gate_bias, self.gate_scale, normal)
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * F.dropout(g.tanh(), self.recurrent_dropout, self.training)
            h = o.sigmoid() * self.cell_norm(c).tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), (h[None], c[None])


def unroll(layer: nn.Module, inputs: Tensor, state: tuple[Tensor, ...] | None = None) -> dict[str, list[Tensor]]:
    """A layer's computation, written out one step at a time on the layer's own weights.

    Args:
        layer: ``nn.RNN`` (tanh), ``nn.LSTM`` or ``nn.GRU`` of one layer and direction.
        inputs: (B, T, I).
        state: (h,) or (h, c), each (1, B, H); zeros if left out.

    Returns:
        lists of (B, H) over the time steps: the state ``h``; for an LSTM also the gates ``i``, ``f``, ``o``, the
        candidate ``g`` and the cell state ``c``; for a GRU the gates ``r`` and ``z`` and the candidate ``n``.
    """
    weights: dict[str, Tensor] = dict(layer.named_parameters())
    recurrent, recurrent_bias = weights["weight_hh_l0"], weights["bias_hh_l0"]
    projected = F.linear(inputs, weights["weight_ih_l0"], weights["bias_ih_l0"])  # U x_t, of all steps at once
    zeros = projected.new_zeros(len(inputs), recurrent.shape[1])
    h = state[0][0] if state else zeros
    c = state[1][0] if state and isinstance(layer, nn.LSTM) else zeros
    steps: dict[str, list[Tensor]] = {}
    for x in projected.unbind(1):
        s = F.linear(h, recurrent, recurrent_bias)  # W h_{t-1}
        if isinstance(layer, nn.LSTM):
            i, f, g, o = (x + s).chunk(4, 1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            now = {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}
        elif isinstance(layer, nn.GRU):
            (x_r, x_z, x_n), (s_r, s_z, s_n) = x.chunk(3, 1), s.chunk(3, 1)
            r, z = (x_r + s_r).sigmoid(), (x_z + s_z).sigmoid()
            n = (x_n + r * s_n).tanh()
            h = (1 - z) * n + z * h
            now = {"r": r, "z": z, "n": n, "h": h}
        else:
            h = (x + s).tanh()
            now = {"h": h}
        for name, value in now.items():
            steps.setdefault(name, []).append(value)
    return steps


def cell_jacobian_terms(layer: nn.LSTM, steps: dict[str, list[Tensor]], t: int) -> dict[str, Tensor]:
    """The four terms that sum to ∂C_t/∂C_{t-1} of an LSTM, each (B, H, H).

    C_t = f_t ⊙ C_{t-1} + i_t ⊙ g_t depends on C_{t-1} directly, and through h_{t-1} = o_{t-1} ⊙ tanh C_{t-1}, which
    each of f_t, i_t and g_t reads. With D = diag(o_{t-1} ⊙ (1 − tanh² C_{t-1})) and U the recurrent matrices:

        direct      diag(f_t)                                    the additive one: it need not shrink
        forget      diag(C_{t-1} ⊙ f_t ⊙ (1 − f_t)) U_f D
        input       diag(g_t ⊙ i_t ⊙ (1 − i_t)) U_i D
        candidate   diag(i_t ⊙ (1 − g_t²)) U_g D

    Args:
        steps: what :func:`unroll` gave.
        t: a step from 1 on.
    """
    u_i, u_f, u_g, _ = layer.get_parameter("weight_hh_l0").chunk(4)
    i, f, g = (steps[name][t] for name in "ifg")
    before, output = steps["c"][t - 1], steps["o"][t - 1]
    d = (output * (1 - before.tanh().square()))[:, None, :]
    return {
        "direct": torch.diag_embed(f),
        "forget": (before * f * (1 - f))[:, :, None] * u_f * d,
        "input": (g * i * (1 - i))[:, :, None] * u_i * d,
        "candidate": (i * (1 - g.square()))[:, :, None] * u_g * d,
    }
