"""An exponential moving average of the weights, used for validation, checkpoints and tests."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Lightning's ``EMAWeightAveraging`` with two of its bugs fixed.

    A checkpoint that is only tested keeps its averaged weights: Lightning's own class restores those of the last step
    whenever it loads a checkpoint in the process that trained, so the test after training would use different weights
    than validation chose. And the module is copied without the Trainer and its optimizer factories, which cannot be
    copied in a distributed run.

    Figures drawn during training use the weights of the last step; those of the test use the averaged weights.

    Args:
        decay: share of the past that each optimizer step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        aside = {name: value for name, value in vars(pl_module).items() if name == "_trainer" or callable(value)}
        vars(pl_module).update(dict.fromkeys(aside))
        try:
            super().setup(trainer, pl_module, stage)
        finally:
            vars(pl_module).update(aside)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
