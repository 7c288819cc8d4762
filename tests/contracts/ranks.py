"""One process of a distributed run: ``RESULT=FILE python -m tests.contracts.ranks fit …`` keeps what it saw."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from experiments.cli import build


class Watch(Callback):
    """Keeps the first step's loss and gradients, as the optimizer sees them."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and name not in self.gradients:
                self.gradients[name] = parameter.grad.clone()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(trainer.strategy.reduce(outputs["loss"], reduce_op="mean")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    cli = build()
    watch = Watch()
    cli.trainer.callbacks.insert(0, watch)
    cli.execute()
    if cli.trainer.is_global_zero:
        metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        torch.save({"gradients": watch.gradients, "losses": watch.losses, "metrics": metrics}, os.environ["RESULT"])
