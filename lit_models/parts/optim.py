"""Optimizers and learning-rate schedules, as Lightning's ``configure_optimizers`` returns them."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017), one step an optimizer step.

    At step t = 0, 1, … of T, with W = ⌈warmup·T⌉: lr = base·(t + 1)/(W + 1) while t < W, then
    base·½(1 + cos(π (t − W)/(T − W))).

    Args:
        warmup: share of the training that warms up, in [0, 1).
        total_steps: T; left out, it is the length of the Trainer's run.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, total_steps: int | None = None) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup}: expected a share of the training in [0, 1)")
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        del state["total_steps"]  # a run that is resumed to be longer decays over its new length
        return state

    def set_total_steps(self, total_steps: int) -> None:
        """Say how long the training is, unless the constructor was told."""
        if self.total_steps is None:
            self.total_steps = total_steps
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr

    def factor(self, step: int) -> float:
        """What the base learning rate is multiplied by at ``step``."""
        total = 1 if self.total_steps is None else self.total_steps
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, total - warm))))

    def get_lr(self) -> list[float | Tensor]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class DecayAfter(LambdaLR):
    """Multiplies the learning rate by ``factor`` an epoch from epoch ``after`` on, counted from 0: char-rnn's."""

    def __init__(self, optimizer: Optimizer, after: int = 10, factor: float = 0.97) -> None:
        super().__init__(optimizer, lambda epoch: factor ** max(0, epoch + 1 - after))


def configure_optimizers(
    module: LightningModule, optimizer: OptimizerCallable, scheduler: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """What a technique with one optimizer returns from ``configure_optimizers``.

    Only parameters that require a gradient are optimized. :class:`WarmupCosine` goes by steps, every other schedule by
    epochs, as torch documents them.
    """
    made = optimizer([p for p in module.parameters() if p.requires_grad])
    if scheduler is None:
        return {"optimizer": made}
    schedule = scheduler(made)
    if isinstance(schedule, WarmupCosine):
        schedule.set_total_steps(int(module.trainer.estimated_stepping_batches))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
    if isinstance(schedule, ReduceLROnPlateau):
        monitor = getattr(schedule, "monitor", "val/loss")
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "monitor": monitor}}
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
