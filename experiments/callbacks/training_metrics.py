"""Training metrics without a log call per step."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class TrainingMetrics(Callback):
    """Averages whatever ``training_step`` returns and logs it as ``train/…`` every ``log_every_n_steps``.

    ``training_step`` returns a loss, or a dict of it and of scalars to average; they are summed where they are, on the
    device, and read once an interval: a ``self.log`` in each step would cost more than a small network's own step.
    ``perf/samples_per_second`` counts the samples of all ranks while training, validation left out.

    The sums travel in the checkpoint, so that a resumed run logs what an uninterrupted one would.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.samples = 0
        self.seconds = 0.0
        self.total_samples = 0
        self.total_seconds = 0.0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def _stop_clock(self) -> None:
        now = time.perf_counter()
        if self._since:
            self.seconds += now - self._since
        self._since = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, Tensor):
            outputs = {"loss": outputs}
        if not self.sums:
            self.sums = {name: torch.zeros((), device=value.device) for name, value in (outputs or {}).items()}
        for name, total in self.sums.items():
            total += outputs[name].detach()
        self.steps += 1
        self.samples += len(batch[0] if isinstance(batch, (tuple, list)) else batch)
        due = (batch_idx + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        means = torch.stack(list(self.sums.values())) / self.steps
        values: list[float] = trainer.strategy.reduce(means, reduce_op="mean").tolist()
        metrics = {f"train/{name}": value for name, value in zip(self.sums, values, strict=True)}
        self._stop_clock()  # after the reading above, which waits for the device
        self.samples *= trainer.world_size
        metrics["perf/samples_per_second"] = self.samples / max(self.seconds, 1e-9)
        self.total_samples += self.samples
        self.total_seconds += self.seconds
        self.sums, self.steps, self.samples, self.seconds = {}, 0, 0, 0.0
        metrics |= _learning_rates(trainer)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step=trainer.global_step)
        if "train/loss" in metrics:
            pl_module.log("train/loss", metrics["train/loss"], prog_bar=True, logger=False)

    def state_dict(self) -> dict[str, Any]:
        counts = ("steps", "samples", "seconds", "total_samples", "total_seconds")
        return {"sums": dict(self.sums)} | {name: getattr(self, name) for name in counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    """``train/lr``, with a number behind it where there are several optimizers; of each one's first group."""
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    if len(rates) == 1:
        return {"train/lr": rates[0]}
    return {f"train/lr_{i}": rate for i, rate in enumerate(rates)}
