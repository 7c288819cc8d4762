"""The learning rate follows the global batch by the rule that was chosen, once, and the run says so."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule

from experiments.callbacks.global_batch import GlobalBatch
from experiments.cli import CLI
from tests.conftest import REPOSITORY

TINY = [
    *("-c", REPOSITORY / "configs/vqa/sort_of_clevr.yaml"),
    *("-c", REPOSITORY / "tests/contracts/shrink/vqa/sort_of_clevr.yaml"),  # batches of 4 and a rate of 0.01
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"),
    *("--trainer.log_every_n_steps", "1", "--figures.every_n_epochs", "null", "--test_after_fit", "false"),
]


def rates(cli: CLI) -> list[float]:
    with cli.folder.metrics.open() as file:
        return [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]


def batch_line(output: str) -> str:
    (line,) = (line for line in output.splitlines() if line.startswith("batch:"))
    return line


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_rate_is_scaled(
    rule: str, factor: float, fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str]
) -> None:
    accumulate = ("--trainer.accumulate_grad_batches", "2")
    plain = fit(*TINY, *accumulate)
    assert batch_line(capsys.readouterr().out) == "batch: 4 per device x 1 device x accumulation 2 = 8 global"
    chosen = fit(*TINY, *accumulate, "--batch.lr_rule", rule, "--batch.reference", "2")
    expected = f"; learning rate x {factor:g} ({rule}, reference 2)"
    assert batch_line(capsys.readouterr().out).endswith(f"= 8 global{expected}")
    assert rates(chosen) == pytest.approx([factor * rate for rate in rates(plain)])
    assert max(rates(plain)) > 0
    start = json.loads(chosen.folder.manifest.read_text())["starts"][0]
    assert start["batch"] == {"per_device": 4, "devices": 1, "accumulation": 2, "global": 8}


@pytest.mark.slow
def test_a_resumed_run_is_not_scaled_again(fit: Callable[..., CLI], capsys: pytest.CaptureFixture[str]) -> None:
    rule = ("--batch.lr_rule", "linear", "--batch.reference", "2")
    whole = fit(*TINY, *rule)
    fit(*TINY, *rule, "--run.id", "parts", "--trainer.max_epochs", "1")
    capsys.readouterr()
    # As on more devices, or with another accumulation: the rate in the checkpoint has its factor already.
    resumed = fit(*TINY, *rule, "--run.id", "parts", "--ckpt_path", "last")
    assert "learning rate x 2 " in capsys.readouterr().out
    assert rates(resumed)[4:] == pytest.approx(rates(whole)[4:])
    more = fit(
        *(*TINY, *rule, "--run.id", "parts", "--ckpt_path", "last", "--trainer.max_epochs", "3"),
        *("--trainer.accumulate_grad_batches", "2"),
    )
    line = batch_line(capsys.readouterr().out)
    assert "= 8 global; learning rate x 2 " in line, "the checkpoint's, which is what the run goes on with"
    assert more.trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(2 * 0.01)


class Scheduled(LightningModule):
    """A module with an optimizer of two groups, each with a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))
        self.optimizer: Any = lambda params: torch.optim.SGD([{"params": [self.weight], "lr": 0.5}, *params], lr=0.1)


def trainer_of(devices: int, nodes: int, **attributes: Any) -> Any:
    """What a Trainer of so many devices says of itself."""
    data = type("Data", (), attributes)()
    names = {"num_devices": devices, "num_nodes": nodes, "accumulate_grad_batches": 1, "is_global_zero": True}
    return type("FakeTrainer", (), {**names, "datamodule": data, "lightning_module": None})()


def test_devices_and_nodes_count_and_every_group_is_scaled(capsys: pytest.CaptureFixture[str]) -> None:
    module, callback = Scheduled(), GlobalBatch("linear", 32)
    before = module.optimizer
    callback.setup(trainer_of(2, 3, batch_size=32), module, "fit")
    made = module.optimizer([{"params": [module.bias]}])
    assert [group["lr"] for group in made.param_groups] == pytest.approx([3.0, 0.6])
    callback.on_train_start(trainer_of(2, 1, batch_size=32), module)
    assert capsys.readouterr().out.startswith("batch: 32 per device x 2 devices x accumulation 1 = 64 global; learning")
    callback.teardown(trainer_of(2, 3), module, "fit")
    assert module.optimizer is before, "a second fit would scale twice"


def test_data_without_a_batch_size(capsys: pytest.CaptureFixture[str]) -> None:
    GlobalBatch().on_train_start(trainer_of(2, 1), Scheduled())
    assert capsys.readouterr().out == "batch: 2 devices x accumulation 1\n"
    with pytest.raises(ValueError, match=r"batch\.lr_rule=sqrt: expected data with a batch_size; Data has none"):
        GlobalBatch("sqrt", 8).setup(trainer_of(2, 1), Scheduled(), "fit")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--batch.lr_rule", "linear"], ["batch.lr_rule=linear", "batch.reference"]),
        (["--batch.lr_rule", "cubic"], ["batch.lr_rule", "cubic", "'none', 'linear', 'sqrt'"]),
        (["--batch.lr_rule", "sqrt", "--batch.reference", "0"], ["batch.reference=0", "at least 1"]),
        (["--matmul_precision", "low"], ["matmul_precision=low", "'highest', 'high', 'medium'"]),
    ],
)
def test_mistakes(options: list[str], expected: list[str], mistake: Callable[..., str]) -> None:
    line = mistake("fit", *TINY, *options)
    for part in expected:
        assert part in line


def test_a_module_without_an_optimizer() -> None:
    module = Scheduled()
    del module.optimizer
    with pytest.raises(ValueError, match=r"batch\.lr_rule=linear: expected a model with an optimizer; Scheduled"):
        GlobalBatch("linear", 8).setup(trainer_of(2, 1, batch_size=4), module, "fit")
