"""Using a model in evaluation mode, whatever its current mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from common.modes import modes_kept


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each part has the mode from before, also when something goes wrong."""
    with modes_kept(module):
        module.eval()
        yield
