"""The states of a run that are kept: the best that validation found, and the newest, from which it resumes."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from experiments.run_folder import RunFolder


class BestCheckpoint(ModelCheckpoint):
    """``checkpoints/best.ckpt``: the state with the best ``monitor`` so far, the first one in case of a tie.

    Args:
        monitor: a metric that validation logs.
        mode: ``min`` or ``max``.
    """

    def __init__(self, monitor: str = "val/loss", mode: str = "min") -> None:
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_on_train_epoch_end=False, enable_version_counter=False
        )

    @property
    def state_key(self) -> str:
        return "BestCheckpoint"  # whatever the arguments: Lightning's is built anew many times a step


class RecoveryCheckpoint(Checkpoint):
    """``checkpoints/step=….ckpt``: the newest states, from which ``--ckpt_path last`` resumes.

    A state is saved at the end of every n-th epoch, after its validation, and in between by steps or by time. None is
    saved right before a validation, since Lightning would skip that validation when it resumes there; it is saved one
    step later, or at the end of the epoch.

    Args:
        every_n_epochs: save at the end of every n-th epoch; 0 means never.
        every_n_train_steps: also save after every n-th step.
        train_time_interval: also save after this much time, as HH:MM:SS.
        keep: number of newest states to keep.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        keep: int = 2,
    ) -> None:
        for name, value, least in (
            ("every_n_epochs", every_n_epochs, 0),
            ("every_n_train_steps", every_n_train_steps, 1),
            ("keep", keep, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"checkpoint.{name}={value}: expected at least {least}")
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self.keep = keep
        self.folder: RunFolder | None = None  # set by the command line
        self._due = False
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            self._due = True
        if self.train_time_interval is not None:
            elapsed = time.monotonic() - self._saved_at >= self.train_time_interval.total_seconds()
            self._due |= trainer.strategy.broadcast(elapsed)
        if self._due and not before_validation(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._due or (self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0):
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path | None:
        """Saves the state now and deletes outdated ones; called on every rank."""
        self._due, self._saved_at = False, time.monotonic()
        if self.folder is None:
            return None
        path = self.folder.checkpoints / f"step={trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)  # the whole state, not the weights alone
        if trainer.is_global_zero:
            states = self.folder.recovery_checkpoints()
            # Later ones are of a training that this one went back behind.
            kept = [state for state in states if state.name <= path.name][: self.keep]
            for state in states:
                if state not in kept:
                    state.unlink()
        return path


def before_validation(trainer: Trainer) -> bool:
    """Whether the batch that just ended is the last of the epoch or is followed by a validation."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    every = trainer.val_check_batch
    return progress.is_last_batch or (every not in (None, float("inf")) and progress.current.ready % every == 0)
