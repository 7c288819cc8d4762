"""``--compile true``: compiles the networks of a module with ``torch.compile``, but not the module itself."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric


def compile_parts(module: LightningModule, device: torch.device) -> None:
    """Compiles each part of ``module`` in place, at its first use: names and checkpoints stay the same.

    A part is a direct child that has parameters. Parts with a recurrent layer of torch (such as ``nn.LSTM``), on which
    ``torch.compile`` gives up, are left out. Without a working compiler for the device, all parts are left out. One
    warning reports it. Computations outside the parts, such as the loss, are not compiled.
    """
    parts = {
        name: child
        for name, child in module.named_children()
        if not isinstance(child, Metric) and next(child.parameters(), None) is not None
    }
    recurrent = [name for name, part in parts.items() if any(isinstance(m, nn.RNNBase) for m in part.modules())]
    if reason := no_compiler(device):
        rank_zero_warn(f"compile: nothing is compiled: torch.compile does not work on {device.type} here ({reason})")
        return
    if recurrent:
        rank_zero_warn(f"compile: left out because of their recurrent layers: {', '.join(recurrent)}")
    compiled = [part for name, part in parts.items() if name not in recurrent]
    # The parts share one count of variants (of sizes, and of training, validation and pictures), and beyond the limit
    # they would run uncompiled.
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, 16 * len(compiled))
    for part in compiled:
        part.compile()


def no_compiler(device: torch.device) -> str | None:
    """Why ``torch.compile`` does not work on ``device``, found by compiling one addition; None if it works."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # of many kinds: no compiler, no Python headers, no Triton, a GPU that is too old
        return f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
    return None
