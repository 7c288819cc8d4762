"""Callbacks are called in each batch where they have something to do, and only there."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from experiments.callbacks.empty_hooks import leave_out_empty_hooks


class Counting(Callback):
    def __init__(self) -> None:
        self.batches = 0
        self.epochs = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches += 1

    def on_train_epoch_end(self, *args: Any) -> None:
        self.epochs += 1


class Inherited(Counting): ...


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_a_callback_defines_is_called_and_the_rest_is_not(tmp_path: Any) -> None:
    own, inherited = Counting(), Inherited()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2)
    trainer = Trainer(
        max_epochs=2, logger=False, enable_progress_bar=False, callbacks=[own, inherited, checkpoint], devices=1
    )
    leave_out_empty_hooks(trainer.callbacks)
    actions: list[str] = []
    start = trainer.profiler.start
    trainer.profiler.start = lambda name: (actions.append(name), start(name))[1]  # type: ignore[method-assign]
    trainer.fit(Line(), torch.ones(3, 2, 1))
    for callback in (own, inherited):
        assert (callback.batches, callback.epochs) == (6, 2)
    assert list(tmp_path.glob("*.ckpt")), "Lightning's own as well"
    assert any("Counting.on_train_batch_end" in action for action in actions)
    assert not any("Counting.on_train_batch_start" in action for action in actions)
