"""`--compile true` changes the speed of a run and nothing else."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from experiments.cli import CLI
from lit_models.vqa import VQA
from tests.conftest import REPOSITORY

TINY = [
    *("-c", REPOSITORY / "configs/vqa/sort_of_clevr.yaml"),
    *("-c", REPOSITORY / "tests/contracts/shrink/vqa/sort_of_clevr.yaml"),
    *("--trainer.max_steps", "3", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"),
    *("--trainer.log_every_n_steps", "1", "--test_after_fit", "false"),
]


def compile_warnings(caught: list[warnings.WarningMessage]) -> list[str]:
    return [text for warning in caught if (text := str(warning.message)).startswith("compile:")]


def losses(cli: CLI) -> list[float]:
    with cli.folder.metrics.open() as file:
        return [float(row.get("train/loss") or row["val/loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_compiled_run_equals_an_uncompiled_one(fit: Callable[..., CLI]) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {str(error).splitlines()[0]}")
    plain = fit(*TINY)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = fit(*TINY, "--compile", "true")
    assert compile_warnings(caught) == ["compile: left out because of their recurrent layers: lstm"]
    assert not [str(warning.message) for warning in caught if "recompile" in str(warning.message)]
    model = compiled.model
    assert {name for name, part in model.named_children() if part._compiled_call_impl is not None} == {
        *("embedding", "encoder", "fact", "classifier")
    }
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-4)

    checkpoint = compiled.folder.recovery_checkpoints()[0]
    keys = [torch.load(cli.folder.recovery_checkpoints()[0])["state_dict"].keys() for cli in (compiled, plain)]
    assert keys[0] == keys[1]
    loaded = VQA.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_without_a_compiler_the_run_goes_on(fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **kwargs: object) -> Callable[..., object]:
        def fails(*args: object) -> None:
            raise RuntimeError("no C++ compiler\nmore about it")

        return fails

    monkeypatch.setattr(torch, "compile", missing)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli = fit(*TINY, "--compile", "true")
    (line,) = compile_warnings(caught)
    assert "does not work on cpu" in line
    assert "no C++ compiler" in line
    assert "\n" not in line
    assert cli.trainer.global_step == 3
    assert all(part._compiled_call_impl is None for part in cli.model.children() if isinstance(part, nn.Module))
