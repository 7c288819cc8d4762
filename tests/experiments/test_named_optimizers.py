from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from experiments.cli import build

MODEL = ["fit", "-c", "configs/autoencoder/digits.yaml"]


@pytest.fixture
def chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``chosen(*args)`` is the optimizer that the autoencoder, whose own is AdamW, is given."""
    from tests.conftest import REPOSITORY

    def run(*args: str) -> dict[str, Any]:
        monkeypatch.chdir(REPOSITORY)
        with pytest.raises(SystemExit):
            build([*MODEL, *args, "--print_config"])
        optimizer: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
        return optimizer

    return run


def test_a_named_optimizer_takes_its_own_defaults(chosen: Callable[..., dict[str, Any]]) -> None:
    found = chosen("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.5")
    assert found["class_path"] == "torch.optim.Adam"
    assert found["init_args"]["lr"] == 0.5
    assert found["init_args"]["weight_decay"] == 0, "AdamW's is 0.01"
    assert chosen("--model.optimizer=torch.optim.SGD")["init_args"]["lr"] == 1e-3, "SGD's own"


def test_the_same_optimizer_keeps_what_was_chosen(chosen: Callable[..., dict[str, Any]]) -> None:
    before = chosen()
    found = chosen("--model.optimizer.weight_decay", "0.5")
    assert found["class_path"] == before["class_path"]
    assert found["init_args"] == before["init_args"] | {"weight_decay": 0.5}


def test_arguments_before_the_optimizer_would_be_lost(mistake: Callable[..., str]) -> None:
    line = mistake("fit", "--model.optimizer.lr", "0.5", "--model.optimizer", "torch.optim.SGD")
    assert line == "--model.optimizer.lr stands before --model.optimizer, which replaces it; expected it after that"
