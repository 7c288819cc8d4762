"""An exponential moving average of the weights, which is what is validated, kept and tested."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Lightning's ``EMAWeightAveraging``, but a checkpoint that is only tested keeps the averaged weights it holds.

    Lightning's own puts the weights of the last step back whenever it loads a checkpoint in the process that trained,
    so that the test after a training would be of other weights than those that validation chose.

    Args:
        decay: share of the past that each optimizer step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)
        self.decay = decay

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
