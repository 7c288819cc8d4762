"""Measures the representations of all techniques the same way, during and after training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from common.decompositions import refuse_large
from common.memory import gigabytes, memory_limit
from common.modes import modes_kept
from common.trainer import datamodule_of
from experiments.callbacks.checkpoints import BestCheckpoint
from experiments.callbacks.exact_resume import generator_states, restore_generators
from experiments.representations import FRACTIONS, alignment, probe
from experiments.technique import Encodes, LabeledImages, TwoViews, mismatch

METRICS = (
    *("knn_accuracy", "probe_accuracy", *(f"probe_accuracy_{name}" for name in FRACTIONS)),
    *("uniformity", "alignment", "effective_rank", "feature_std"),
)
"""names of the probe's metrics, without the stage"""


class RepresentationProbe(Callback):
    """Measures the features that a module's ``encode`` computes from images, and logs them with its other metrics.

    It logs ``val/…`` for the validation part, after the validation of every n-th epoch and of the last one, and
    ``test/…`` for the test part in a test. Neighbors come from the training part, and the linear probe is fitted on it,
    both without augmentation; the validation part chooses the probe's penalty, in a test too.

    =======================  =========================================================================================
    ``knn_accuracy``         of weighted neighbors: :func:`experiments.representations.knn_predict`
    ``probe_accuracy``       of a linear classifier: :func:`experiments.representations.fit_linear_probes`
    ``probe_accuracy_1pct``  the same, fitted on 1 % of the labels, at least one of each class; and ``…_10pct``
    ``uniformity``           :func:`experiments.representations.uniformity`
    ``alignment``            :func:`experiments.representations.alignment` of two views, if the data have them
    ``effective_rank``       :func:`experiments.representations.effective_rank`
    ``feature_std``          :func:`experiments.representations.feature_std`
    =======================  =========================================================================================

    The module needs ``encode(images) -> (B, D)``; the data ``plain_loader(part)``, a TensorLoader of each sample once
    over all ranks, ``to_float(batch)``, ``labeled_subset(fraction)``, which are rows of the training part, and
    ``num_classes``; for the alignment also ``two_views(batch)``, which answers with two augmented batches. Where one of
    them is missing there is no probe. It changes nothing in the training: weights, modes and random generators are as
    before.

    There is none either where the data have no labels, where the weights are spread over devices, or where the features
    are too many and too long; one line says so. If the best checkpoint was to be chosen by one of these metrics, it is
    chosen by the least ``val/loss`` then, which the line says too.

    Each rank encodes its share; the features are then on every rank, and so are the metrics. 50,000 features of
    2,048 dimensions need about 2 GB on the device.

    Args:
        every_n_epochs: how often to measure; 0 means only at the end, ``null`` never, not even in a test.
        k, temperature: of the neighbors.
        bank_size: largest number of training images, each class in proportion. Shares of the labels that would exceed
            it are left out.

    Raises:
        ValueError: an argument is out of range; the best checkpoint is to be chosen by a metric that is not logged.
    """

    def __init__(
        self, every_n_epochs: int | None = 10, k: int = 200, temperature: float = 0.1, bank_size: int = 50_000
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 0:
            raise ValueError(f"probe.every_n_epochs={every_n_epochs}: expected 0 or more, or null for no probe")
        for name, value in (("k", k), ("bank_size", bank_size)):
            if value < 1:
                raise ValueError(f"probe.{name}={value}: expected at least 1")
        if not 0 < temperature < math.inf:
            raise ValueError(f"probe.temperature={temperature}: expected more than 0")
        self.every_n_epochs = every_n_epochs
        self.k, self.temperature, self.bank_size = k, temperature, bank_size
        self.works = False
        self.why_off: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = datamodule_of(trainer)
        self.works = self.every_n_epochs is not None and isinstance(pl_module, Encodes)
        self.works = self.works and isinstance(data, LabeledImages)
        for checkpoint in chosen_by_probe(trainer) if stage == "fit" and not self.works else ():
            raise ValueError(
                f"best.monitor={checkpoint.monitor}: expected a logged metric; the probe is off, the model has no "
                "encode, or the data are no images with labels"
            )
        if self.works and (reason := mismatch(pl_module, Encodes)):
            self._give_up(trainer, reason, rank_zero_warn)
        if self.works and isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            self._give_up(trainer, "it does not run while the weights are spread over devices", rank_zero_warn)
        if self.works and not has_labels(data):
            self._give_up(trainer, "the data have no labels", rank_zero_info)

    def _give_up(self, trainer: Trainer, reason: str, say: Callable[[str], None]) -> None:
        """Says once why there is no probe, and lets ``val/loss`` choose the best checkpoint if the probe was to."""
        line = f"no representation probe: {reason}"
        for checkpoint in chosen_by_probe(trainer):
            line += f"; best.monitor={checkpoint.monitor} becomes val/loss, with mode=min"
            checkpoint.monitor, checkpoint.mode, checkpoint.kth_value = "val/loss", "min", torch.tensor(math.inf)
        if reason != self.why_off:
            say(line)
        self.works, self.why_off = False, reason

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in monitors():  # Lightning keeps what was logged: of an older state, unless measured again
            trainer.callback_metrics.pop(name, None)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.works and self._is_due(trainer):
            self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.works and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._log(trainer, pl_module, "test")

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        if trainer.state.fn == "validate":
            return True
        if 0 < trainer.max_steps <= trainer.global_step:
            return True
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return False
        epoch = trainer.current_epoch + 1
        return epoch == trainer.max_epochs or bool(self.every_n_epochs and epoch % self.every_n_epochs == 0)

    def _log(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        try:
            metrics = self.measure(trainer, pl_module, stage)
        except TooLarge as error:
            self._give_up(trainer, str(error), rank_zero_warn)
            return
        if not metrics:
            self._give_up(trainer, "the images that validate or test have no labels", rank_zero_warn)
        pl_module.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def measure(self, trainer: Trainer, pl_module: LightningModule, part: str) -> dict[str, float]:
        """The metrics of the part "val" or "test" by their names without a stage; called on every rank."""
        data: Any = datamodule_of(trainer)
        rows, subsets = labeled_rows(data, self.bank_size)

        def encode(batch: Any) -> Tensor:
            features: Tensor = pl_module.encode(batch.images)  # type: ignore[operator]
            return features.flatten(1)

        with undisturbed(pl_module), torch.no_grad():
            bank = collect(encode, data, "train", rows, trainer, refuse_too_large)
            evaluated = collect(encode, data, part, None, trainer)
            selecting = evaluated if part == "val" else collect(encode, data, "val", None, trainer)
            if not (len(evaluated[1]) and len(selecting[1])):
                return {}
            metrics = probe(
                *(*bank, *evaluated, *selecting),
                num_classes=data.num_classes,
                subsets={name: subset.to(bank[1].device) for name, subset in subsets.items()},
                k=self.k,
                temperature=self.temperature,
            )
            if isinstance(data, TwoViews):
                torch.manual_seed(0)  # the same views each time
                pairs, _ = collect(
                    lambda batch: torch.cat([encode(view) for view in data.two_views(batch)], 1),
                    data,
                    part,
                    None,
                    trainer,
                )
                first, second = pairs.chunk(2, 1)
                metrics["alignment"] = alignment(first, second)
        return metrics


class BestProbedCheckpoint(BestCheckpoint):
    """:class:`BestCheckpoint` that may have a metric of the probe as its monitor.

    Validations after which the probe does not run choose nothing.

    Args:
        monitor: a metric that validation logs.
        mode: ``min`` or ``max``.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in monitors() or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


def monitors() -> list[str]:
    """The probe's metrics that validation logs."""
    return [f"val/{name}" for name in METRICS]


def chosen_by_probe(trainer: Trainer) -> list[ModelCheckpoint]:
    """The callbacks that keep the checkpoint with the best value of one of the probe's metrics."""
    found = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    return [each for each in found if each.monitor in monitors()]


class TooLarge(ValueError):
    """The features do not fit into the memory, or their products can't be decomposed."""


def refuse_too_large(count: int, dims: int, device: torch.device) -> None:
    """Raises TooLarge if as many training images have features (count, dims) that can't be probed."""
    needed = 16 * count * dims
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_limit()
    remedy = "; a smaller probe.bank_size may help"
    if needed > there / 2:
        raise TooLarge(
            f"{count} features of {dims} numbers need {gigabytes(needed)}, expected at most half of "
            f"{gigabytes(there)}{remedy}"
        )
    try:
        refuse_large("a linear probe", count, dims)
    except ValueError as error:
        raise TooLarge(f"{error}{remedy}") from None


def has_labels(data: LabeledImages) -> bool:
    """Whether a training image has a label."""
    try:
        data.labeled_subset(1.0)
    except ValueError:  # how it says that there are none
        return False
    return True


def labeled_rows(data: Any, most: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The labeled rows of the training part (N,), up to a maximum, and which of them are in each share of labels."""
    rows: Tensor = data.labeled_subset(1.0)
    if most is not None and len(rows) > most:
        rows = data.labeled_subset(most / len(rows))
    shares = {name: data.labeled_subset(fraction) for name, fraction in FRACTIONS.items()}
    # A smaller share's rows are among a larger one's, and all are in ascending order.
    return rows, {name: torch.searchsorted(rows, share) for name, share in shares.items() if len(share) <= len(rows)}


def collect(
    encode: Callable[[Any], Tensor],
    data: Any,
    part: str,
    rows: Tensor | None = None,
    trainer: Trainer | None = None,
    refuse: Callable[[int, int, torch.device], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) of a part's labeled images, on every rank.

    Args:
        encode: takes a batch as ``to_float`` returns it.
        rows: of the part; by default all.
        trainer: determines the device, the precision and the other ranks; by default none of these.
        refuse: asked with N, D and the device, as soon as they are known.
    """
    loader = data.plain_loader(part)
    if rows is not None and len(rows) < loader.num_samples:
        loader = loader.over(loader.source.take(rows))
    device = trainer.strategy.root_device if trainer else torch.device("cpu")
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in loader:
        batch = data.to_float(move_data_to_device(batch, device))
        with trainer.precision_plugin.forward_context() if trainer else nullcontext():
            features.append(encode(batch).float())
        if refuse is not None and not labels:
            refuse(loader.num_samples, features[0].shape[1], device)
        labels.append(batch.labels)
    x, y = (from_all_ranks(torch.cat(found), loader.num_samples, trainer) for found in (features, labels))
    return x[y >= 0], y[y >= 0]


def from_all_ranks(rows: Tensor, num_samples: int, trainer: Trainer | None) -> Tensor:
    """(n, …) of each rank → (num_samples, …) on every rank, in order: a TensorLoader deals samples out like cards."""
    if trainer is None or trainer.world_size == 1:
        return rows
    missing = math.ceil(num_samples / trainer.world_size) - len(rows)  # on some ranks the last of all
    padded = F.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing))
    gathered: Tensor = trainer.strategy.all_gather(padded)
    return gathered.transpose(0, 1).flatten(0, 1)[:num_samples]


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """Evaluation mode inside; afterwards the mode of each part and all random generators are restored."""
    generators = generator_states()
    try:
        with modes_kept(module):
            module.eval()
            yield
    finally:
        restore_generators(generators)
