"""A training as one rank of a distributed run sees it."""

from __future__ import annotations

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


def watched(args: list[str]) -> dict[str, Any]:
    """What a command computed: its first gradients, its losses and its last metrics."""
    cli = build(args)
    watch = Watch()
    cli.trainer.callbacks.insert(0, watch)
    cli.execute()
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return {"gradients": watch.gradients, "losses": watch.losses, "metrics": metrics}
