"""A training epoch as users get it, and its floor.

The *floor* of an epoch is the time of a hand-written loop that does the same work, plus what a bare Trainer adds to a
step that does nothing, times the number of steps. Everything is measured in turn, in one process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from benchmarks.harness import Times, interleaved, quiet
from experiments.cli import CLI, build


def device() -> torch.device:
    """Where the Trainer's ``accelerator: auto`` puts a run."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def now() -> float:
    """Seconds on a monotonic clock, once the device is done with what it was given."""
    if device().type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


class EpochClock(Callback):
    """Seconds of each training epoch, from its start to before its checkpoint is written."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = now()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds.append(now() - self._since)


@contextlib.contextmanager
def command_line(config: list[str]) -> Iterator[CLI]:
    """What ``train.py fit`` builds of these arguments: on one device, quiet, in a temporary folder, W&B off."""
    options = ["--trainer.devices", "1", "--trainer.enable_progress_bar", "false", "--test_after_fit", "false"]
    with (
        tempfile.TemporaryDirectory() as runs,
        patch.dict(os.environ, LIT_RUNS=runs, WANDB_MODE="disabled"),
        patch.object(sys, "argv", sys.argv[:1]),
        quiet(),
    ):
        yield build(["fit", *config, *options])


def training_seconds(config: list[str], epochs: int = 3, limit_batches: int | None = None) -> float:
    """Seconds of one training epoch as users get it: every callback and ``metrics.csv``, without validation.

    Args:
        config: of ``train.py fit``, e.g. ``["-c", "configs/vqa/easy_vqa.yaml"]``.
        epochs: that are timed, of which the median counts; one more goes before.
        limit_batches: in an epoch; all by default.
    """
    limits = ["--trainer.max_epochs", str(epochs + 1), "--trainer.limit_val_batches", "0"]
    if limit_batches is not None:
        limits += ["--trainer.limit_train_batches", str(limit_batches)]
    with command_line([*config, *limits]) as cli:
        cli.trainer.callbacks.append(clock := EpochClock())
        cli.execute()
    return median(clock.seconds[1:])


class Nothing(LightningModule):
    """One parameter, which is its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1e-3)


def bare_trainer_seconds(steps: int = 500) -> float:
    """Seconds of a step that does nothing, under a Trainer with everything off."""
    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with quiet():
        trainer = Trainer(max_epochs=2, devices=1, callbacks=[clock := EpochClock()], **off)
        trainer.fit(Nothing(), torch.zeros(steps, 1))
    return clock.seconds[-1] / steps


def bare_hand_seconds(steps: int = 500) -> float:
    """Seconds of the same step by hand."""
    weight = nn.Parameter(torch.ones((), device=device()))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    for _ in range(2):  # the first is for warming up
        start = now()
        for batch in torch.zeros(steps, 1):
            batch.to(device())
            optimizer.zero_grad()
            (weight * 1).backward()
            optimizer.step()
        seconds = now() - start
    return seconds / steps


def against_floor(
    trainer: Callable[[], float], by_hand: Callable[[], float], steps: int, repeats: int = 5, warmup: int = 1
) -> Times:
    """Times an epoch of ``steps`` under the command line and by hand, and makes the ``floor`` of each round.

    Returns "train.py", "floor", and what the floor is made of: "by hand" and "bare Trainer".
    """
    cases = {"train.py": trainer, "by hand": by_hand, "bare": bare_trainer_seconds, "bare by hand": bare_hand_seconds}
    times = interleaved(cases, repeats, warmup)
    bare = [steps * (a - b) for a, b in zip(times["bare"], times["bare by hand"], strict=True)]
    floor = [a + b for a, b in zip(times["by hand"], bare, strict=True)]
    return {"train.py": times["train.py"], "floor": floor, "by hand": times["by hand"], "bare Trainer": bare}
