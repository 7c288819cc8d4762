"""Where mixed precision would cost what a technique needs."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> torch.autocast:
    """No autocast inside, on the device of ``values``: their products keep their digits."""
    return torch.autocast(values.device.type, enabled=False)
