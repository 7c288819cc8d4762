"""Training metrics without a log call per step; also stops a run whose loss is NaN or infinite."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from experiments.technique import size_of, unit_of


class NonFiniteLoss(ValueError):
    """The loss is NaN or infinite."""


class TrainingMetrics(Callback):
    """Averages whatever ``training_step`` returns and logs it as ``train/…`` every ``log_every_n_steps``.

    ``training_step`` returns a loss, or a dict of it and of scalars to average. They stay where they are, on the
    device, and are read once an interval: a ``self.log`` in each step would cost more than a small network's own step.
    ``perf/samples_per_second`` counts the samples of all ranks while training, validation left out. Where a batch is
    counted in something else, the name says so: ``perf/characters_per_second``.

    A loss that is not finite stops the run with its step and value, at the latest before the next checkpoint would be
    written, so that the last one is good.

    What was not logged yet travels in the checkpoint: a resumed run logs what an uninterrupted one would.

    Raises:
        NonFiniteLoss: see above.
    """

    def __init__(self) -> None:
        self.pending: dict[str, list[Tensor]] = {}  # one scalar a step since the last row
        self.unit = "samples"
        self.samples = 0  # or characters, …: in the unit
        self.seconds = 0.0
        self.total_samples = 0
        self.total_seconds = 0.0
        self._fits = False
        self._since: float | None = None  # when the clock was last read; None while it stands

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fits = stage == "fit"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read_clock()
        self._since = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = None

    def _read_clock(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self.seconds += now - self._since
            self._since = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, Tensor):
            outputs = {"loss": outputs}
        for name, value in (outputs or {}).items():
            self.pending.setdefault(name, []).append(value.detach())
        self.samples += size_of(batch)
        due = (batch_idx + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.unit = unit_of(batch)
            self._log(trainer, pl_module)

    def _check_finite(self, trainer: Trainer) -> None:
        losses = torch.stack(self.pending.get("loss") or [torch.zeros(())])
        broken = ~losses.isfinite()
        # Decided together: a rank that stopped alone would leave the others waiting for it.
        if trainer.strategy.reduce_boolean_decision(bool(broken.any()), all=False):
            first = int(broken.nonzero()[0]) if broken.any() else len(losses) - 1
            step = trainer.global_step - len(losses) + first + 1
            raise NonFiniteLoss(
                f"the loss is {float(losses[first])} in step {step}; stopped, the last checkpoint is from before that"
            )

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_finite(trainer)
        means = torch.stack([torch.stack(values).float().mean() for values in self.pending.values()])
        values: list[float] = trainer.strategy.reduce(means, reduce_op="mean").tolist()
        metrics = {f"train/{name}": value for name, value in zip(self.pending, values, strict=True)}
        self._read_clock()  # after the reading above, which waits for the device
        self.samples *= trainer.world_size
        metrics[f"perf/{self.unit}_per_second"] = self.samples / max(self.seconds, 1e-9)
        self.total_samples += self.samples
        self.total_seconds += self.seconds
        self.pending, self.samples, self.seconds = {}, 0, 0.0
        metrics |= _learning_rates(trainer)
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **metrics}, step=trainer.global_step)
        pl_module.log("train/loss", metrics["train/loss"], prog_bar=True, logger=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check_finite(trainer)
        pending = {name: torch.stack(values).cpu() for name, values in self.pending.items()}
        everywhere: list[Any] = [pending]
        if trainer.world_size > 1:  # Lightning keeps the callbacks' state of rank 0 only
            everywhere = [None] * trainer.world_size
            dist.all_gather_object(everywhere, pending)
        checkpoint["pending_metrics"] = everywhere

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        everywhere = checkpoint.get("pending_metrics", [])
        if len(everywhere) == trainer.world_size:
            pending = everywhere[trainer.global_rank]
            device = trainer.strategy.root_device
            self.pending = {name: list(values.to(device).unbind()) for name, values in pending.items()}

    def state_dict(self) -> dict[str, Any]:
        self._read_clock()
        return {name: getattr(self, name) for name in ("samples", "seconds", "total_samples", "total_seconds")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items() if self._fits else ():  # not where a checkpoint is only tested
            setattr(self, name, value)


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    """``train/lr`` of the first parameter group, followed by a number if there are several optimizers."""
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    if len(rates) == 1:
        return {"train/lr": rates[0]}
    return {f"train/lr_{i}": rate for i, rate in enumerate(rates)}
