"""The pictures of a technique, written while it trains."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from common.files import write_whole


class Figures(Callback):
    """Writes what a module's ``illustrate()`` returns to the run's folder, and to Weights & Biases.

    ``illustrate()`` returns a dict of matplotlib figures (written as PNG) and SVG texts (written as they are), whose
    names may end in ``.svg``, so that one may stand beside the figure of the same name. They are kept by when they were
    made: ``figures/epoch_0004/…`` and ``figures/test/…``.

    Args:
        every_n_epochs: how often, after the validation; 0 for only at the end, ``null`` for never, not even in a test.
        dpi: of the PNG files.
    """

    def __init__(self, every_n_epochs: int | None = 10, dpi: int = 110) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise ValueError(f"figures.every_n_epochs={every_n_epochs}: expected 0 or more, or null for no figures")
        self.every_n_epochs = every_n_epochs
        self.dpi = dpi
        self.folder: Path | None = None  # of the run; set by the command line

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs and epoch % self.every_n_epochs == 0
        if due or epoch == trainer.max_epochs:
            self.write(trainer, pl_module, f"epoch_{epoch:04d}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "test")

    @rank_zero_only
    def write(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        illustrate = getattr(pl_module, "illustrate", None)
        if self.every_n_epochs is None or self.folder is None or illustrate is None:
            return
        if isinstance(trainer.strategy, FSDPStrategy):  # this rank has a part of the weights only
            rank_zero_warn(f"no figures for {moment}: they are not drawn while the weights are spread over devices")
            return
        device = trainer.strategy.root_device
        forked = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(forked), torch.no_grad():  # pictures must not change the training
            pictures = illustrate()
        folder = self.folder / moment
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, picture in pictures.items():
            if isinstance(picture, str):
                write_whole(folder / f"{name.removesuffix('.svg')}.svg", picture)
                continue
            file = folder / f"{name}.png"
            picture.savefig(file, dpi=self.dpi)
            files.append(file)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases
                for file in files:
                    logger.log_image(f"figures/{file.stem}", [str(file)])
