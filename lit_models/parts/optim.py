"""Optimizers and learning-rate schedules, as Lightning's ``configure_optimizers`` returns them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from common.checks import at_least, within


class WarmupCosine(LRScheduler):
    """Linear warm-up, then half a cosine down to zero (Loshchilov & Hutter 2017), updated at every optimizer step.

    At step t = 0, 1, … of T, with W = ⌈warmup·T⌉: lr = base·(t + 1)/(W + 1) while t < W, then
    base·½(1 + cos(π (t − W)/(T − W))).

    Args:
        warmup: share of the training used for warm-up, in [0, 1).
        total_steps: T; by default the length of the Trainer's run.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, total_steps: int | None = None) -> None:
        within("[0, 1)", warmup=warmup)
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        del state["total_steps"]  # a run that is resumed to be longer decays over its new length
        return state

    def set_total_steps(self, total_steps: int) -> None:
        """Sets the length of the training, unless it was given to the constructor."""
        if self.total_steps is None:
            self.total_steps = total_steps
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr

    def factor(self, step: int) -> float:
        """The factor of the base learning rate at ``step``."""
        total = 1 if self.total_steps is None else self.total_steps
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1, (step - warm) / max(1, total - warm))))

    def get_lr(self) -> list[float | Tensor]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You, Gitman & Ginsburg 2017), for large batches, as in SimCLR's code.

    For a weight matrix or kernel w with gradient g, all norms Euclidean:

        d = g + weight_decay · w        v ← momentum · v + lr · trust · ‖w‖ / ‖d‖ · d        w ← w − v

    where the ratio is 1 if either norm is 0. (You et al. divide by ‖g‖ + weight_decay · ‖w‖.) Biases and the weights of
    norms, that is, tensors with at most one dimension, are neither scaled nor decayed: v ← momentum · v + lr · g. They
    are recognized by shape, not by name, since names differ between networks.

    All tensors are updated at once, and the host reads no norm.

    Args:
        trust: the coefficient η, 0.001 as in SimCLR's code.

    Raises:
        ValueError: an argument is negative, or momentum is 1 or more.
    """

    def __init__(
        self, params: Any, lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 1e-6, trust: float = 1e-3
    ) -> None:
        at_least(0, lr=lr, weight_decay=weight_decay, trust=trust)
        within("[0, 1)", momentum=momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = {p: self.state[p]["momentum_buffer"] for p in params}
            torch._foreach_mul_(list(buffers.values()), group["momentum"])
            scaled, vectors = [p for p in params if p.dim() > 1], [p for p in params if p.dim() <= 1]
            if scaled:
                decayed = torch._foreach_add([p.grad for p in scaled], scaled, alpha=group["weight_decay"])
                weights, lengths = norms(scaled), norms(list(decayed))
                ratios = torch.where((weights > 0) & (lengths > 0), group["trust"] * weights / lengths, 1.0)
                rates = list((group["lr"] * ratios).unbind())
                torch._foreach_addcmul_([buffers[p] for p in scaled], decayed, rates)
            if vectors:
                torch._foreach_add_([buffers[p] for p in vectors], [p.grad for p in vectors], alpha=group["lr"])
            torch._foreach_sub_(params, list(buffers.values()))
        return loss


def norms(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of each of N tensors: (N,)."""
    if tensors[0].is_cpu:  # where PyTorch's own takes twice as long
        return torch.stack([t.flatten() @ t.flatten() for t in tensors]).sqrt()
    return torch.stack(torch._foreach_norm(tensors))


class DecayAfter(LambdaLR):
    """Multiplies the learning rate by ``factor`` each epoch from epoch ``after`` on, counted from 0, as char-rnn."""

    def __init__(self, optimizer: Optimizer, after: int = 10, factor: float = 0.97) -> None:
        super().__init__(optimizer, lambda epoch: factor ** max(0, epoch + 1 - after))


class DecayToFloor(LRScheduler):
    """sketch-RNN's schedule: exponential decay to a floor, updated at every optimizer step.

    At step t = 0, 1, …: lr = (base − floor)·decay^t + floor.

    Raises:
        ValueError: ``decay`` outside (0, 1], or a negative ``floor``.
    """

    def __init__(self, optimizer: Optimizer, decay: float = 0.9999, floor: float = 1e-5) -> None:
        within("(0, 1]", decay=decay)
        at_least(0, floor=floor)
        self.decay, self.floor = decay, floor
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        return [(base - self.floor) * self.decay**self.last_epoch + self.floor for base in self.base_lrs]


def configure_optimizers(
    module: LightningModule,
    optimizer: OptimizerCallable,
    scheduler: LRSchedulerCallable | None,
    decay_vectors: bool = True,
    parts: Sequence[nn.Module] | None = None,
    accumulate: int = 1,
) -> OptimizerLRSchedulerConfig | OptimizerConfig:
    """One optimizer with its schedule, for a technique to return from ``configure_optimizers``, alone or among others.

    Only parameters that require a gradient are optimized. :class:`WarmupCosine` and :class:`DecayToFloor` go by steps,
    all other schedules by epochs, as torch documents them.

    Args:
        decay_vectors: whether the optimizer's weight decay applies to biases and the weights of norms, that is, to
            parameters with at most one dimension.
        parts: the networks to optimize, if not the whole module.
        accumulate: number of batches per step, if the module counts them itself instead of the Trainer.
    """
    trained = [p for part in parts or [module] for p in part.parameters() if p.requires_grad]
    if decay_vectors:
        made = optimizer(trained)
    else:
        matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
        made = optimizer([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    if scheduler is None:
        return {"optimizer": made}
    schedule = scheduler(made)
    if isinstance(schedule, WarmupCosine):
        steps = module.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise ValueError("scheduler WarmupCosine: needs trainer.max_epochs or trainer.max_steps as its length")
        if accumulate > 1:  # the Trainer takes each batch for a step
            trainer = module.trainer
            epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else math.inf
            steps = epochs * math.ceil(trainer.num_training_batches / accumulate)
            steps = min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps
        schedule.set_total_steps(int(steps))
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
    if isinstance(schedule, DecayToFloor):
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
    if isinstance(schedule, ReduceLROnPlateau):
        monitor = getattr(schedule, "monitor", "val/loss")
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "monitor": monitor}}
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}
