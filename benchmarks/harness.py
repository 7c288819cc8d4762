"""What every benchmark shares: interleaved rounds, ratios with their range, and the floor of a training run.

The *floor* of an epoch is the time of a hand-written loop that does the same work, plus what a bare Trainer adds to a
step that does nothing, times the number of steps. Everything is measured in turn, in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from experiments.cli import CLI, build

Times = dict[str, list[float]]
"""seconds of each case, one number a round"""


def interleaved(cases: dict[str, Callable[[], float]], repeats: int = 5, warmup: int = 1) -> Times:
    """Runs the cases in turn, A B A B …; each returns the seconds of what it timed. Warm-up rounds are not kept."""
    times: Times = {name: [] for name in cases}
    for turn in range(warmup + repeats):
        for name, case in cases.items():
            gc.collect()  # what the case before has left
            seconds = case()
            if turn >= warmup:
                times[name].append(seconds)
    return times


def ratios(times: Times, reference: str) -> Times:
    """Each case over the reference, round by round."""
    return {name: [a / b for a, b in zip(times[name], times[reference], strict=True)] for name in times}


def report(title: str, times: Times, reference: str) -> None:
    """Prints the machine, medians and ranges in milliseconds, and the ratios to the reference with theirs."""
    print(f"{title}\n{machine()}\nmedian (min – max) of {len(times[reference])} interleaved rounds\n")
    rows = [("", "milliseconds", f"× {reference}")]
    for name, ratio in ratios(times, reference).items():
        rows.append((name, _cell([1e3 * seconds for seconds in times[name]]), _cell(ratio)))
    for row in rows:
        print(f"{row[0]:14}{row[1]:>34}{row[2]:>28}")


def _cell(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


def machine() -> str:
    """Processor, threads, load and versions in one line."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    parts = [named[1] if named else platform.processor() or platform.machine()]
    parts += [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    parts += [f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads", f"load {os.getloadavg()[0]:.1f}"]
    return ", ".join([*parts, *(f"{package} {metadata.version(package)}" for package in ("torch", "lightning"))])


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark accepts: ``--repeats`` and ``--check``."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--check", type=float, metavar="LIMIT", help="exit status 1 if the median ratio misses LIMIT")
    return parser


def verdict(ratio: list[float], limit: float | None, *, at_least: bool = False) -> int:
    """The exit status: 1 if there is a limit and the median ratio is beyond it, else 0."""
    if limit is None:
        return 0
    middle = median(ratio)
    met = middle >= limit if at_least else middle <= limit
    print(f"\n{middle:.3f}: expected at {'least' if at_least else 'most'} {limit}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


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
def quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


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
