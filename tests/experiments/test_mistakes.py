"""Each mistake that a user can make on the command line ends in one line that helps, and exit status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.cli import CLI
from tests.conftest import REPOSITORY

CONFIG = REPOSITORY / "configs" / "vqa" / "easy_vqa.yaml"
TINY = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--test_after_fit", "false"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model.hiden_dim", "3"], ["model.hiden_dim", "lit_models.vqa.VQA", "did you mean 'hidden_dim'"]),
        (["--model.hidden_dim", "x"], ["model.hidden_dim=x", "expected int"]),
        (["--model.fusion", "prod"], ["model.fusion=prod", "'product', 'concat', 'attention', 'relation'"]),
        (["--data.batchsize", "3"], ["data.batchsize", "did you mean 'batch_size'"]),
        (["--trainer.max_epoch", "3"], ["--trainer.max_epoch", "did you mean '--trainer.max_epochs'"]),
        (["--trainer.max_epochs", "many"], ["trainer.max_epochs=many", "expected int"]),
        (["--foo", "3"], ["--foo: no such option"]),
        (["--model", "lit_models.vqa.VQB"], ["lit_models.vqa has no class 'VQB'", "did you mean 'VQA'"]),
        (["--model", "lit_models.vqq.VQA"], ["no module named 'lit_models.vqq'", "did you mean 'lit_models.vqa'"]),
        (["--model.optimizer.init_args.lr", "x"], ["model.optimizer", "lr", "x", "expected float"]),
        (["--trainer.accelerator", "gpux"], ["gpux", "cpu"]),
        (["--model.encoder", "resnet19"], ["encoder='resnet19'", "did you mean 'resnet18'"]),
        (["--model.blind", "true", "--model.image_only", "true"], ["blind", "image_only", "at most one"]),
        (["--data.holdout", "[square-red]"], ["holdout='square-red'", "rectangle-red"]),
        (["--data.batch_size", "0"], ["batch_size=0", "at least 1"]),
        (["--data.batch_size", "100000"], ["batch_size=100000", "at most 3600 samples"]),
        (["--ckpt_path", "nothing.ckpt"], ["ckpt_path=nothing.ckpt", "no such file"]),
        (["--run.name", "x"], ["run.name=x", "<technique>/<data set>"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_wrong_option(options: list[str], expected: list[str], mistake: Callable[..., str]) -> None:
    line = mistake("fit", "-c", CONFIG, *options)
    for part in expected:
        assert part in line
    assert len(line) < 250


def test_a_missing_config_names_the_nearest(mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    line = mistake("fit", "-c", "configs/vqa/easy_vqua.yaml")
    assert "no file 'configs/vqa/easy_vqua.yaml'" in line
    assert "did you mean 'configs/vqa/easy_vqa.yaml'" in line


def test_a_key_that_a_file_misspells(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("trainer:\n  max_epoch: 3\n")
    line = mistake("fit", "-c", CONFIG, "-c", tmp_path / "wrong.yaml")
    assert "max_epoch" in line
    assert "did you mean 'trainer.max_epochs'" in line


def test_a_file_that_is_no_yaml(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("trainer: [\n")
    assert "wrong.yaml" in mistake("fit", "-c", CONFIG, "-c", tmp_path / "wrong.yaml")


def test_missing_data_says_where_to_get_it(mistake: Callable[..., str], tmp_path: Path) -> None:
    line = mistake("fit", "-c", CONFIG.with_name("vqa_v2.yaml"), "--data.root", tmp_path)
    assert str(tmp_path) in line
    assert "https://visualqa.org/download.html" in line


def test_a_subcommand_that_is_none(mistake: Callable[..., str]) -> None:
    assert "fitt" in mistake("fitt", "-c", CONFIG)


def test_no_config_at_all(mistake: Callable[..., str]) -> None:
    assert "model" in mistake("fit")


def test_resuming_with_other_settings_is_refused(fit: Callable[..., CLI], mistake: Callable[..., str]) -> None:
    fit("-c", CONFIG, *TINY)
    common = ("fit", "-c", CONFIG, *TINY, "--ckpt_path", "last")
    line = mistake(*common, "--model.hidden_dim", "64")
    assert "model.hidden_dim=64" in line
    assert "made with 128" in line
    assert "data.batch_size=7" in mistake(*common, "--data.batch_size", "7")
    assert "seed_everything=5" in mistake(*common, "--seed_everything", "5")
    assert "model.optimizer" in mistake(*common, "--model.optimizer.init_args.lr", "0.5")


@pytest.mark.slow
def test_checkpoints_that_do_not_fit(fit: Callable[..., CLI], mistake: Callable[..., str], tmp_path: Path) -> None:
    cli = fit("-c", CONFIG, *TINY)
    checkpoint = cli.folder.recovery_checkpoints()[0]
    content = torch.load(checkpoint, weights_only=True)

    content["hyper_parameters"]["_class_path"] = "lit_models.other.Other"
    torch.save(content, tmp_path / "other.ckpt")
    line = mistake("test", "-c", CONFIG, "--ckpt_path", tmp_path / "other.ckpt")
    assert "lit_models.other.Other" in line
    assert "lit_models.vqa.VQA" in line

    (tmp_path / "half.ckpt").write_bytes(checkpoint.read_bytes()[:5000])
    assert "broken" in mistake("test", "-c", CONFIG, "--ckpt_path", tmp_path / "half.ckpt")

    torch.save({"state_dict": {}, "code": subprocess.Popen}, tmp_path / "code.ckpt")
    assert "refused" in mistake("test", "-c", CONFIG, "--ckpt_path", tmp_path / "code.ckpt")

    torch.save({"weights": 1}, tmp_path / "bare.ckpt")
    assert "state_dict" in mistake("test", "-c", CONFIG, "--ckpt_path", tmp_path / "bare.ckpt")


def test_test_without_any_run(mistake: Callable[..., str]) -> None:
    assert "no run of vqa/easy_vqa" in mistake("test", "-c", CONFIG, "--ckpt_path", "best")


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import cli
    from lit_models.vqa import VQA

    def broken(*args: object) -> None:
        int("x")  # a ValueError that nobody raised on purpose

    monkeypatch.setattr(VQA, "training_step", broken)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "-c", str(CONFIG), *TINY])
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main()


@pytest.mark.slow
def test_the_script_itself_exits_with_status_2(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(CONFIG), "--model.hiden_dim", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_missing_checkpoint_to_start_from(mistake: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    line = mistake("fit", "-c", CONFIG, "--init_from", str(tmp_path / "bets.ckpt"))
    assert line.startswith(f"init_from={tmp_path / 'bets.ckpt'}: no such file")
    assert "'best.ckpt'" in line
    assert not any((tmp_path / "runs").glob("**/*.ckpt"))


def test_predicting_on_several_devices(mistake: Callable[..., str]) -> None:
    assert mistake("predict", "-c", CONFIG, "--trainer.devices", "2", "--trainer.accelerator", "cpu").startswith(
        "trainer.devices=2: expected 1 for predict, which keeps predictions in order"
    )
