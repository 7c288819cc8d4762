"""A run that was killed at any step and resumed ends bit for bit as one that never was."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.parts import loader, visual_questions
from experiments.cli import CLI, build
from experiments.run_folder import RunFolder
from tests.conftest import QUIET
from tests.contracts.conftest import BY_TECHNIQUE, TECHNIQUES

EPOCHS, STEPS = 2, 4
KILLED_AFTER = [(1,), (3,), (4,), (5,), (7,)]
IN_SHORT = (3, 4)
"""one run killed twice: in the middle of an epoch, between two saved states, and at the epoch's end"""
SMALL = [
    *("--trainer.max_epochs", EPOCHS, "--trainer.limit_train_batches", STEPS, "--trainer.limit_val_batches", 2),
    # Rows at steps 3, 4 of an epoch, states at 2, 4: one has metrics that no row has yet, and is older than a row.
    *("--trainer.log_every_n_steps", 3, "--checkpoint.every_n_train_steps", 2, "--test_after_fit", "false"),
]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the product may catch it."""


class Kill(Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.after:
            raise Killed


def run(config: list[str], run_id: str, *more: str, kill_after: int | None = None) -> CLI:
    cli = build(["fit", *config, *map(str, SMALL), *more, *QUIET, "--run.id", run_id, "--ckpt_path", "last"])
    if kill_after is None:
        cli.execute()
        return cli
    cli.trainer.callbacks.insert(0, Kill(kill_after))
    with pytest.raises(Killed):
        cli.execute()
    return cli


@pytest.fixture
def whole(
    bare: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> CLI:
    """The run that was never killed: trained once for all the tests of a configuration, which change nothing of it."""
    global _whole
    if _whole is None or _whole[0] != bare:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("LIT_RUNS", str(tmp_path_factory.mktemp("whole")))
            _whole = bare, run(bare, "whole")
    return _whole[1]


_whole: tuple[list[str], CLI] | None = None


def rows(folder: RunFolder) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with folder.metrics.open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in csv.DictReader(file)]


def state(path: Path | None) -> dict[str, Any]:
    assert path is not None
    content = torch.load(path, weights_only=True)
    return {
        key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "generators")
    }


def assert_equal(found: Any, expected: Any, where: str = "") -> None:
    """Bit for bit, throughout nested containers."""
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_equal(a, b, f"{where}/{i}")
    else:
        assert found == expected, where


def resume(config: list[str], *killed_after: int) -> CLI:
    """A run that was killed after so many steps and started again, once or several times."""
    run_id = "-".join(map(str, ["killed", *killed_after]))
    for after in killed_after:
        run(config, run_id, kill_after=after)
    return run(config, run_id)


def assert_same_run(resumed: CLI, whole: CLI, where: str) -> None:
    """Weights, newest and best checkpoint, and metrics.csv, bit for bit."""
    assert_equal(resumed.model.state_dict(), whole.model.state_dict(), where)
    newest = state(resumed.folder.recovery_checkpoints()[0])
    assert_equal(newest, state(whole.folder.recovery_checkpoints()[0]), where)
    assert_equal(state(resumed.folder.best_checkpoint()), state(whole.folder.best_checkpoint()), where)
    assert rows(resumed.folder) == rows(whole.folder), where


def test_killed_at_any_step(bare: list[str], whole: CLI, pytestconfig: pytest.Config) -> None:
    for after in KILLED_AFTER if pytestconfig.getoption("--all") else [IN_SHORT]:
        resumed = resume(bare, *after)
        assert_same_run(resumed, whole, f"killed after step {after}")


@pytest.mark.slow
@pytest.mark.parametrize("config", TECHNIQUES, indirect=True)
def test_pictures_change_no_training(bare: list[str], whole: CLI) -> None:
    with_pictures = run(bare, "pictures", "--figures.every_n_epochs", "1")
    assert len(list(with_pictures.folder.figures.iterdir())) == EPOCHS
    assert_same_run(with_pictures, whole, "with pictures")


@pytest.mark.parametrize("config", BY_TECHNIQUE, indirect=True)
def test_data_that_changed_are_refused(bare: list[str], whole: CLI, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = whole.folder.recovery_checkpoints()[1]  # the newest is of its end
    for module in (visual_questions, loader):
        monkeypatch.setattr(module, "checksum", lambda tensors: 1)
    cli = build(["fit", *bare, *map(str, SMALL), *QUIET, "--ckpt_path", str(checkpoint)])
    with pytest.raises(ValueError, match="--allow_changed_data true"):
        cli.execute()


@pytest.mark.parametrize("config", BY_TECHNIQUE, indirect=True)
def test_a_loaded_checkpoint_is_the_same_model(whole: CLI) -> None:
    checkpoint = whole.folder.recovery_checkpoints()[0]
    torch.load(checkpoint, weights_only=True)  # plain data only

    loaded = type(whole.model).load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)

    def metrics(model: LightningModule) -> dict[str, float]:
        trainer = Trainer(accelerator="cpu", limit_val_batches=2, logger=False, enable_progress_bar=False)
        trainer.validate(model, whole.datamodule, verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    expected = metrics(whole.model)
    assert expected
    assert metrics(loaded) == pytest.approx(expected, nan_ok=True)
