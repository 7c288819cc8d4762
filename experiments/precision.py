"""A precision that this processor lacks is replaced before the first step, rather than met in the middle of one."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn


def usable_precision(precision: object, module: nn.Module, accelerator: str) -> Any:
    """The Trainer's ``precision``, or "32-true" with a line on stderr where ``module`` can't be trained in it here.

    PyTorch computes an LSTM on the CPU in one fused operation, which has no bfloat16 without AVX-512. It is tried: what
    a processor's name promises is not what PyTorch was built with. All else falls back to slower code by itself.

    Args:
        precision: as the Trainer takes it.
        module: what is trained.
        accelerator: as the Trainer takes it.
    """
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if not (
        on_cpu and precision in ("bf16-mixed", "bf16") and any(isinstance(part, nn.LSTM) for part in module.modules())
    ):
        return precision
    if (reason := _fault_of_lstm()) is None:
        return precision
    print(
        f"trainer.precision={precision}: this processor has no bfloat16 LSTM ({reason}); continuing in float32",
        file=sys.stderr,
    )
    return "32-true"


def _fault_of_lstm() -> str | None:
    """What PyTorch says of a training step of an LSTM in bfloat16 on the CPU; None where it can do it."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        lstm = nn.LSTM(2, 2)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                output, _ = lstm(torch.zeros(2, 1, 2))
            output.float().sum().backward()
        except RuntimeError as error:
            return str(error).splitlines()[0].partition(". Run")[0]
    return None
