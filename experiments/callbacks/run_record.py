"""Records a run's configuration, manifest and summary, besides its metrics and checkpoints."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from common.files import write_whole
from experiments.callbacks.global_batch import batch_size_of
from experiments.callbacks.training_metrics import TrainingMetrics
from experiments.metrics_csv import MetricsCSV
from experiments.run_folder import RunFolder, read_record, write_manifest


class RunRecord(Callback):
    """Writes ``config.yaml`` and ``manifest.json`` when a run starts and keeps ``summary.json`` up to date.

    In the summary, ``best`` holds the validation metrics of the best checkpoint and ``monitor`` the metric that chose
    it, which is ``best.monitor`` unless the data have no labels for that one; ``last`` holds those of the last
    validation, and ``test`` the test metrics; ``wall_seconds`` counts training and validation over all restarts.

    Args:
        folder: the run's.
        config: the complete configuration as YAML.
        command, seed, tags: for the manifest.
        best: the callback that chooses the best checkpoint.
        metrics: the logger whose rows a restart cuts back to the checkpoint's.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: str,
        command: list[str],
        seed: int | None,
        tags: list[str],
        best: ModelCheckpoint,
        metrics: MetricsCSV,
    ) -> None:
        self.folder = folder
        self.config = config
        self.command = command
        self.seed = seed
        self.tags = tags
        self.best = best
        self.metrics = metrics
        self.values: dict[str, Any] = {"best": {}, "last": {}, "test": {}}
        self.wall_seconds = 0.0
        self._since: float | None = None
        self._started = self._fits = False
        self._rows = 0  # of metrics.csv when the checkpoint was saved

    @property
    def _wall(self) -> float:
        return self.wall_seconds + (time.perf_counter() - self._since if self._since is not None else 0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and not self._started:
            if stage == "fit":
                write_whole(self.folder.config, self.config)
            batch = batch_size_of(trainer) if stage == "fit" else None
            manifest = write_manifest(self.folder, self.command, self.seed, self.tags, batch)
            for logger in trainer.loggers:
                config = getattr(getattr(logger, "experiment", None), "config", None)
                if config is not None:  # Weights & Biases
                    config.update({"manifest": manifest}, allow_val_change=True)
            if stage != "fit":  # evaluating a run that was trained before
                self.values |= read_record(self.folder.summary)
                self.wall_seconds = self.values.get("wall_seconds", 0.0)
        self._started, self._fits = True, stage == "fit"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()
        self.values["parameters"] = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Rows that a killed process wrote after its last checkpoint will be written again.
        self.metrics.truncate(self._rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = _metrics(trainer, "val/")
        self.values["last"] = {"step": trainer.global_step, "epoch": trainer.current_epoch, **values}
        if self._is_best(values):
            self.values["best"] = dict(self.values["last"])
        self._write(trainer)

    def _is_best(self, values: dict[str, float]) -> bool:
        new, old = values.get(self.best.monitor or ""), self.values["best"].get(self.best.monitor)
        if new is None or old is None:
            return new is not None
        better: bool = new > old if self.best.mode == "max" else new < old
        return better

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.wall_seconds, self._since = self._wall, None
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.values["test"] = _metrics(trainer, "test/")
        self._write(trainer)

    @rank_zero_only
    def _write(self, trainer: Trainer) -> None:
        self.values["wall_seconds"] = round(self._wall, 3)
        if self._fits:
            self.values["monitor"] = self.best.monitor
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TrainingMetrics) and callback.total_seconds:
                self.values[f"{callback.unit}_per_second"] = callback.total_samples / callback.total_seconds
        write_whole(self.folder.summary, json.dumps(self.values, indent=2) + "\n")
        for logger in trainer.loggers:
            summary = getattr(getattr(logger, "experiment", None), "summary", None)
            if summary is not None:  # Weights & Biases
                chosen = {f"best/{name}": value for name, value in self.values["best"].items()}
                last = {f"last/{name}": value for name, value in self.values["last"].items()}
                rest = {k: v for k, v in self.values.items() if k == "wall_seconds" or k.endswith("_per_second")}
                summary.update(chosen | last | self.values["test"] | rest)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values, "wall_seconds": self._wall, "metrics_rows": self.metrics.num_rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fits:  # the best checkpoint is loaded to be tested: what came after it is not undone
            return
        self.values = state_dict["values"]
        self.wall_seconds = state_dict["wall_seconds"]
        self._rows = state_dict["metrics_rows"]


def _metrics(trainer: Trainer, prefix: str) -> dict[str, float]:
    """The Trainer's metrics of one stage as plain numbers; NaN, which JSON does not have, becomes None."""
    values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
    return {name: None if math.isnan(value) else value for name, value in sorted(values.items())}  # type: ignore[misc]
