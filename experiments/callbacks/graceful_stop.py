"""A run that is told to stop saves its state first; on SLURM it asks to be requeued."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from experiments.callbacks.checkpoints import RecoveryCheckpoint, before_validation


class Stopped(BaseException):
    """The run was told to stop; ``checkpoint`` is its newest state, or None if it had not taken its first step."""

    def __init__(self, number: int, checkpoint: Path | None) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.checkpoint = checkpoint


class GracefulStop(Checkpoint):  # a Checkpoint, so that it comes after every other callback
    """Stops ``fit`` at the next safe point after SIGINT, SIGTERM or, on SLURM, SIGUSR1, and saves its state.

    Safe points are the end of setup, of a training step, of a validation, and each batch of the test that follows
    training. A run that is started again continues at the same place: at its beginning, with the next step, or with the
    test.

    SLURM sends SIGUSR1 before the time limit if the job has ``--signal=SIGUSR1@<seconds>``. The job is then requeued
    and continues in the same folder, since the run's id is the job's number. (Lightning would save in the middle of a
    step.) A SIGINT during setup, or a second SIGINT, ends the run at once.

    Raises:
        Stopped: on every rank, after the state is saved.
    """

    def __init__(self, recovery: RecoveryCheckpoint) -> None:
        self.recovery = recovery
        self.received = 0
        self._watched: list[signal.Signals] = []
        self._started = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Records signals from here on, since by default they would end the process whatever it is doing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._watched = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            self._watched.append(signal.SIGUSR1)
        before = {number: signal.getsignal(number) for number in self._watched}
        self._install()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._watched = []

    def _install(self) -> None:
        for number in self._watched:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and (self.received == number or not self._started):
            raise KeyboardInterrupt
        self.received = number

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment):
            environment.auto_requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()  # again, for Lightning has put its own around them
        self._started = True
        if number := self._received_anywhere(trainer):
            raise Stopped(number, self._newest())

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._install()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Each rank for itself: they may have different numbers of batches, and there is nothing to save together.
        if self.received:
            raise Stopped(self.received, self._newest())

    def _newest(self) -> Path | None:
        saved = self.recovery.folder.recovery_checkpoints() if self.recovery.folder else []
        return saved[0] if saved else None

    def _received_anywhere(self, trainer: Trainer) -> int:
        """The signal that any rank has received, or 0; the same on every rank."""
        if trainer.world_size == 1:
            return self.received
        import torch

        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if not before_validation(trainer) and (number := self._received_anywhere(trainer)):
            raise Stopped(number, self.recovery.save(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if number := self._received_anywhere(trainer):
            raise Stopped(number, self.recovery.save(trainer))


def requeue_job() -> None:
    """Asks SLURM to requeue this job.

    Raises:
        RuntimeError: SLURM refused.
    """
    job = os.environ["SLURM_JOB_ID"]
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"scontrol requeue {job} failed: {done.stderr.strip()}")
