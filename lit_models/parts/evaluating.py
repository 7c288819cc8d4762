"""Using a model in evaluation mode, whatever mode it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and the mode from before afterwards (also when something goes wrong)."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
