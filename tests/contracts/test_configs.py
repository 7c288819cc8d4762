"""What every configuration must do: each technique is found by its files in ``configs/``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from experiments.callbacks.exact_resume import generator_states
from experiments.callbacks.figures import Figures
from experiments.cli import CLI, build
from tests.conftest import QUIET
from tests.contracts.conftest import BY_TECHNIQUE
from tests.contracts.test_resume import assert_equal

STEPS = 3
TINY = [
    *("--trainer.max_epochs", "1", "--trainer.max_steps", str(STEPS)),
    *("--trainer.limit_train_batches", str(STEPS), "--trainer.limit_val_batches", "2"),
    *("--trainer.limit_test_batches", "2", "--trainer.log_every_n_steps", "2"),
]


def test_parses_and_prints_itself(config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        build(["fit", *config, "--print_config"])
    assert exit_status.value.code in (0, None)
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].startswith("lit_models.")
    assert printed["run"]["name"], "a configuration names its runs"


class Look(Callback):
    """What the training goes on with, at each moment at which pictures are drawn."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        modes = {name: module.training for name, module in pl_module.named_modules()}
        self.seen.append({"weights": weights, "modes": modes, "generators": generator_states()})

    on_test_end = on_validation_end


def test_a_tiny_run_leaves_everything(config: list[str]) -> None:
    cli = build(["fit", *config, *TINY, *QUIET])
    before, after = Look(), Look()
    callbacks = cli.trainer.callbacks
    place = next(i for i, callback in enumerate(callbacks) if isinstance(callback, Figures))
    callbacks[place : place + 1] = [before, callbacks[place], after]
    cli.execute()
    folder = cli.folder

    saved = yaml.safe_load(folder.config.read_text())
    assert saved["trainer"]["max_steps"] == STEPS
    assert saved["run"]["id"] is None, "the saved configuration starts a run of its own"
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["id"] == folder.id
    assert torch.__version__.startswith(manifest["starts"][0]["versions"]["torch"])
    assert len(manifest["starts"]) == 1, "the test after the training is no start of its own"

    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row.get("train/loss")]
    assert steps == [2, STEPS]
    unit = "characters" if "text.CharText" in saved["data"]["class_path"] else "samples"
    assert any(row.get(f"perf/{unit}_per_second") for row in rows)

    summary = json.loads(folder.summary.read_text())
    monitor = saved["best"]["monitor"]
    assert summary["best"][monitor] == summary["last"][monitor]
    assert summary["best"]["step"] == STEPS
    assert summary["last"]["step"] == STEPS
    assert any(name.startswith("test/") for name in summary["test"])
    assert summary["wall_seconds"] > 0
    assert summary[f"{unit}_per_second"] > 0

    assert folder.best_checkpoint() is not None
    assert folder.recovery_checkpoints()
    for moment in ("epoch_0001", "test"):
        pictures = list((folder.figures / moment).iterdir())
        assert pictures, f"no figures in {moment}"
        assert all(picture.stat().st_size > (0 if picture.suffix == ".txt" else 1000) for picture in pictures)
    assert len(before.seen) == 2
    assert_equal(after.seen, before.seen, "after the pictures")


@pytest.mark.parametrize("config", BY_TECHNIQUE, indirect=True)
def test_trains_in_mixed_precision(bare: list[str], fit: Callable[..., CLI]) -> None:
    cli = fit(*bare, *TINY, "--trainer.precision", "bf16-mixed")
    with cli.folder.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses
    assert torch.tensor(losses).isfinite().all()
    kinds = {value.dtype for value in cli.model.state_dict().values() if value.is_floating_point()}
    assert torch.bfloat16 not in kinds, "only what is computed is rounded"
    assert cli.folder.summary.is_file()


class Repeated:
    """The same batch again and again."""

    def __init__(self, batch: Any, times: int) -> None:
        self.batch, self.times = batch, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.times)


@pytest.mark.parametrize("config", BY_TECHNIQUE, indirect=True)
def test_overfits_one_batch(bare: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 60
    # A schedule that decays over the whole of a real training would hardly move in so few steps, or start too slowly.
    cli = build(
        [
            "fit",
            *bare,
            *("--trainer.max_epochs", "1", "--trainer.max_steps", str(steps), "--trainer.log_every_n_steps", "5"),
            *("--trainer.limit_val_batches", "0", "--test_after_fit", "false", *QUIET),
        ]
    )
    cli.datamodule.setup("fit")
    batch = next(iter(cli.datamodule.train_dataloader()))
    monkeypatch.setattr(cli.datamodule, "train_dataloader", lambda: Repeated(batch, steps))
    cli.execute()
    with cli.folder.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.5 * losses[0], losses
