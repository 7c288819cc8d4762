from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from experiments.cli import build
from experiments.resuming import differing
from tests.conftest import REPOSITORY

MODEL = ["fit", "-c", "configs/autoencoder/digits.yaml"]


@pytest.fixture
def chosen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """``chosen(*args)`` is the optimizer that the autoencoder, whose own is AdamW, is given."""

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


@pytest.fixture
def task(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """``task(*args)`` is the task of the deep image prior, whose configuration has noise of deviation 25."""

    def run(*args: str) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            build(["fit", "-c", f"{REPOSITORY}/configs/deep_image_prior/denoise.yaml", *args, "--print_config"])
        found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["task"]
        return found

    return run


def test_a_named_task_takes_nothing_of_the_one_before(task: Callable[..., dict[str, Any]]) -> None:
    found = task("--data.task", "Inpaint", "--data.task.mask", "mask.png")
    assert found["class_path"] == "datamodules.degradations.Inpaint"
    assert found["init_args"]["mask"] == "mask.png"
    assert found["init_args"]["sigma"] == 0, "25 is that of the noise"
    assert task("--data.task.poisson_peak", "9")["init_args"] == {"sigma": 25, "poisson_peak": 9}, "it is the same task"


def test_null_is_null_at_any_depth(chosen: Callable[..., dict[str, Any]], task: Callable[..., dict[str, Any]]) -> None:
    assert task("--data.task.sigma", "null")["init_args"]["sigma"] is None
    assert task("--data.task.init_args.sigma=null")["init_args"]["sigma"] is None
    adam = ["--model.optimizer", "torch.optim.Adam"]
    assert chosen(*adam, "--model.optimizer.foreach", "true")["init_args"]["foreach"] is True
    assert (
        chosen(*adam, "--model.optimizer.foreach", "true", "--model.optimizer.foreach", "null")["init_args"]["foreach"]
        is None
    )


def test_arguments_before_the_optimizer_would_be_lost(mistake: Callable[..., str]) -> None:
    line = mistake("fit", "--model.optimizer.lr", "0.5", "--model.optimizer", "torch.optim.SGD")
    assert line == "--model.optimizer.lr stands before --model.optimizer, which replaces it; expected it after that"
    line = mistake("fit", "--data.task.mask", "mask.png", "--data.task", "Inpaint")
    assert line == "--data.task.mask stands before --data.task, which replaces it; expected it after that"


def test_an_argument_that_a_class_did_not_have_yet_does_not_contradict_an_older_run() -> None:
    old = {"class_path": "Inpaint", "init_args": {"mask": "a.png", "sigma": 0}}
    new = {"class_path": "Inpaint", "init_args": {"mask": "a.png", "sigma": 0, "invert_mask": False}}
    assert not list(differing("data.task", new, old))
    new["init_args"]["mask"] = "b.png"  # type: ignore[index]
    assert list(differing("data.task", new, old)) == [("data.task.mask", "b.png", "a.png")]
    assert list(differing("data.task", {"class_path": "Denoise"}, old)) == [
        ("data.task", {"class_path": "Denoise"}, old)
    ]
