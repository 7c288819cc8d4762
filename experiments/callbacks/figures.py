"""The figures of a technique, drawn while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from common.files import write_whole
from experiments.technique import Illustrates

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


class Figures(Callback):
    """Writes the pictures of a technique to the run's folder, and to Weights & Biases.

    They are drawn from the module and the first batch of the evaluation that has just ended, by :func:`drawer_of` the
    module. What draws returns a dict of matplotlib figures and Pillow images, which are written as PNG, and of texts,
    which are written as they are: under a name that ends in ``.txt`` plain text, under any other SVG. So a text may
    stand beside the picture of the same name. They are kept by when they were made: ``figures/epoch_0004/…`` and
    ``figures/test/…``.

    Args:
        every_n_epochs: how often to draw, after the validation; 0 means only at the end, ``null`` never, not even in a
            test.
        dpi: resolution of matplotlib's figures.
    """

    def __init__(self, every_n_epochs: int | None = 10, dpi: int = 110) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise ValueError(f"figures.every_n_epochs={every_n_epochs}: expected 0 or more, or null for no figures")
        self.every_n_epochs = every_n_epochs
        self.dpi = dpi
        self.folder: Path | None = None  # of the run; set by the command line
        self.batch: Any = None  # the first one of an evaluation, while it lasts

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == dataloader_idx == 0:
            self.batch = batch

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            epoch = trainer.current_epoch + 1
            due = self.every_n_epochs and epoch % self.every_n_epochs == 0
            if due or epoch == trainer.max_epochs:
                self.write(trainer, pl_module, f"epoch_{epoch:04d}")
        self.batch = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer, pl_module, "test")
        self.batch = None

    @rank_zero_only
    def write(self, trainer: Trainer, pl_module: LightningModule, moment: str) -> None:
        if self.every_n_epochs is None or self.folder is None or (draw := drawer_of(pl_module)) is None:
            return
        if isinstance(trainer.strategy, FSDPStrategy):  # this rank has a part of the weights only
            rank_zero_warn(f"no figures for {moment}: they are not drawn while the weights are spread over devices")
            return
        device = trainer.strategy.root_device
        forked = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(forked), torch.no_grad():  # pictures must not change the training
            pictures = draw(self.batch)
        folder = self.folder / moment
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for name, picture in pictures.items():
            if isinstance(picture, str):
                write_whole(folder / (name if name.endswith((".svg", ".txt")) else f"{name}.svg"), picture)
                continue
            file = folder / f"{name}.png"
            if hasattr(picture, "savefig"):
                picture.savefig(file, dpi=self.dpi)
            else:
                picture.save(file)
            files.append(file)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # Weights & Biases
                for file in files:
                    logger.log_image(f"figures/{file.stem}", [str(file)])


def drawer_of(module: LightningModule) -> Callable[[Any], Mapping[str, Figure | Image | str]] | None:
    """What makes pictures of a batch, for a module: its own ``illustrate(batch)``, if it has one.

    Else ``illustrate(module, batch)`` of the file in ``lit_models/figures`` that has the name of its technique, or of
    the technique that it derives from; None where there is none.
    """
    if isinstance(module, Illustrates):
        return module.illustrate
    for ancestor in type(module).__mro__:
        package, _, technique = ancestor.__module__.rpartition(".")
        file = f"lit_models.figures.{technique}"
        if package == "lit_models" and find_spec(file):
            return partial(import_module(file).illustrate, module)
    return None
