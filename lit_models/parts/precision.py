"""Full precision where mixed precision would cost accuracy that a technique needs."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> torch.autocast:
    """Turns autocast off on the device of ``values``, so that products keep their precision."""
    return torch.autocast(values.device.type, enabled=False)
