"""Numbers that a module draws from the global generators are repeated after a kill."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from tests.contracts.test_resume import assert_same_run, resume, run

OPTIONS = ["--model", f"{__name__}.Noisy", "--data", "datamodules.images.Digits"]


class Noisy(LightningModule):
    """Each step draws from PyTorch's, NumPy's and Python's generator, as dropout or a user's own augmentation would."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        draws = torch.tensor([torch.rand(()), np.random.random(), random.random()])  # noqa: NPY002
        return (self.weight * draws).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.weight.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_draws_go_on_where_they_were() -> None:
    whole = run(OPTIONS, "whole")
    assert whole.model.weight.unique().numel() == 3
    for after in (3, 4):
        assert_same_run(resume(OPTIONS, after), whole, f"killed after step {after}")
