"""A run that is told to end saves its state first; on SLURM it asks to be queued again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from experiments.callbacks.checkpoints import RecoveryCheckpoint, before_validation


class Stopped(BaseException):
    """The run was told to end and has saved its state."""

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.checkpoint = checkpoint


class GracefulStop(Checkpoint):  # a Checkpoint, so that it comes after every other callback
    """Ends the run at the next step after SIGINT, SIGTERM or, on SLURM, SIGUSR1, with its state saved.

    SLURM sends SIGUSR1 ahead of the end where the job has ``--signal=SIGUSR1@<seconds>``: the job is then queued again
    and goes on in the same folder, since the run's id is the job's number. (Lightning would save in the middle of a
    step.) A second SIGINT ends the run at once.

    Raises:
        Stopped: on every rank, after the state is saved.
    """

    def __init__(self, recovery: RecoveryCheckpoint) -> None:
        self.recovery = recovery
        self.received = 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        watched = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            watched.append(signal.SIGUSR1)
        for number in watched:
            self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _received_anywhere(self, trainer: Trainer) -> int:
        """The signal that some rank has received, or 0; the same on every rank."""
        if trainer.world_size == 1:
            return self.received
        import torch

        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not before_validation(trainer) and (number := self._received_anywhere(trainer)):
            raise Stopped(number, self.recovery.save(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if number := self._received_anywhere(trainer):
            raise Stopped(number, self.recovery.save(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def requeue_job() -> None:
    """Asks SLURM to run this job again.

    Raises:
        RuntimeError: SLURM refuses.
    """
    job = os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"scontrol requeue {job} failed: {done.stderr.strip()}")
