"""The global batch over all devices, and the learning rate that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from common.trainer import datamodule_of
from experiments.technique import AccumulatesGradients, Batched, MakesOptimizer


class GlobalBatch(Callback):
    """Reports the size of the global batch and can scale the learning rate with it.

    The configured rate belongs to a global batch of ``reference``. For another size it is multiplied by
    global / reference (``linear``: Goyal et al. 2017) or by the square root of that (``sqrt``: for Adam, Malladi et al.
    2022), before the schedule sees it. A resumed run keeps its checkpoint's rate.

    Args:
        lr_rule: ``none``, ``linear`` or ``sqrt``.
        reference: the global batch for which the configured learning rate was chosen.

    Raises:
        ValueError: a rule without a reference, or a reference without a rule; a rule for data without ``batch_size``,
            or for a module without ``optimizer``, the callable that creates its optimizers.
    """

    def __init__(self, lr_rule: Literal["none", "linear", "sqrt"] = "none", reference: int | None = None) -> None:
        if lr_rule != "none" and reference is None:
            raise ValueError(
                f"batch.lr_rule={lr_rule}: needs batch.reference too, the global batch for which the configured "
                "learning rate was chosen"
            )
        if reference is not None and reference < 1:
            raise ValueError(f"batch.reference={reference}: expected at least 1")
        self.lr_rule = lr_rule
        self.reference = reference
        self.factor = 1.0
        self.is_quiet = False  # whether the line at the start is left out
        self._optimizer: Callable[..., Optimizer] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.lr_rule == "none":
            return
        size = batch_size_of(trainer)
        if "global" not in size:
            data = type(datamodule_of(trainer)).__name__
            raise ValueError(f"batch.lr_rule={self.lr_rule}: expected data with a batch_size; {data} has none")
        if not isinstance(pl_module, MakesOptimizer):
            model = type(pl_module).__name__
            raise ValueError(f"batch.lr_rule={self.lr_rule}: expected a model with an optimizer; {model} has none")
        optimizer = pl_module.optimizer
        assert self.reference is not None
        ratio = size["global"] / self.reference
        self.factor = ratio if self.lr_rule == "linear" else math.sqrt(ratio)
        self._optimizer = optimizer
        pl_module.optimizer = scaled(optimizer, self.factor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.is_quiet:
            print(self.line(batch_size_of(trainer)))

    def line(self, size: dict[str, int]) -> str:
        """The line printed at the start of training."""
        parts = [f"{size['per_device']} per device"] if "per_device" in size else []
        parts += [
            f"{size['devices']} device{'s' if size['devices'] > 1 else ''}",
            f"accumulation {size['accumulation']}",
        ]
        line = f"batch: {' x '.join(parts)}"
        if "global" in size:
            line += f" = {size['global']} global"
        if self.lr_rule != "none":
            line += f"; learning rate x {self.factor:g} ({self.lr_rule}, reference {self.reference})"
        return line

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.factor = state_dict["factor"]  # what the rate in the checkpoint was multiplied by

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._optimizer is not None:
            pl_module.optimizer = self._optimizer  # type: ignore[assignment]
            self._optimizer = None


def batch_size_of(trainer: Trainer) -> dict[str, int]:
    """The number of samples in one optimizer step and its factors: per_device x devices x accumulation = global.

    ``devices`` counts all nodes. For data without ``batch_size``, ``per_device`` and ``global`` are left out.
    """
    devices = trainer.num_devices * trainer.num_nodes
    # A module with several optimizers accumulates by itself, and then the Trainer does not.
    module = trainer.lightning_module
    own = module.accumulate_grad_batches if isinstance(module, AccumulatesGradients) else 1
    accumulation = trainer.accumulate_grad_batches * own
    size = {"devices": devices, "accumulation": accumulation}
    data = datamodule_of(trainer)
    if not isinstance(data, Batched):
        return size
    return {"per_device": data.batch_size, **size, "global": data.batch_size * devices * accumulation}


def scaled(optimizer: Callable[..., Optimizer], factor: float) -> Callable[..., Optimizer]:
    """A callable that creates the same optimizer with ``factor`` times the learning rate in each of its groups."""

    def make(params: object) -> Optimizer:
        made = optimizer(params)
        for group in made.param_groups:
            group["lr"] = group["lr"] * factor
        return made

    return make
