"""Faults that a run survives: broken files, a full disk, a loss that is no number, signals, and a second process."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from experiments import cli as command_line
from experiments.callbacks.graceful_stop import Stopped
from experiments.callbacks.training_metrics import NonFiniteLoss
from experiments.cli import CLI, build
from experiments.metrics_csv import MetricsCSV
from experiments.run_folder import RunFolder
from lit_models.vqa import VQA
from tests.conftest import QUIET, REPOSITORY

CONFIG = [
    *("-c", str(REPOSITORY / "configs/vqa/sort_of_clevr.yaml")),
    *("-c", str(REPOSITORY / "tests/contracts/shrink/vqa/sort_of_clevr.yaml")),
]
SMALL = [
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"),
    *("--trainer.log_every_n_steps", "2", "--test_after_fit", "false", "--figures.every_n_epochs", "null"),
]


def start(run_id: str, *options: str) -> CLI:
    return build(["fit", *CONFIG, *SMALL, *QUIET, "--run.id", run_id, *options])


def test_a_cut_off_checkpoint_falls_back_to_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
    cli = start("one")
    cli.execute()
    newest, older = cli.folder.recovery_checkpoints()
    newest.write_bytes(newest.read_bytes()[:10_000])
    resumed = start("one", "--ckpt_path", "last")
    resumed.execute()
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert str(newest) in warning
    assert str(older) in warning
    assert_same_weights(resumed, cli)


def assert_same_weights(a: CLI, b: CLI) -> None:
    for (name, found), expected in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


def test_a_full_disk_ends_the_run_in_one_line(mistake: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    start("full").execute()
    folder = start("full").folder
    before = {path.name: path.read_bytes() for path in folder.checkpoints.iterdir()}

    def full(content: Any, file: Any) -> None:
        file.write(b"some bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    line = mistake("fit", *CONFIG, *SMALL, *QUIET, "--run.id", "full", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert "No space left on device" in line
    assert "kept" in line
    assert {path.name: path.read_bytes() for path in folder.checkpoints.iterdir()} == before, "nothing half-written"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    step = VQA.training_step

    def broken(self: VQA, batch: Any, batch_idx: int) -> Any:
        outputs = step(self, batch, batch_idx)
        if self.global_step == 5:
            outputs["loss"] = outputs["loss"] * value
        return outputs

    monkeypatch.setattr(VQA, "training_step", broken)
    cli = start("broken", "--checkpoint.every_n_train_steps", "1")
    with pytest.raises(NonFiniteLoss, match=f"the loss is {value} in step 6"):
        cli.execute()
    newest = torch.load(cli.folder.recovery_checkpoints()[0], weights_only=True)
    assert newest["global_step"] == 5
    assert all(value.isfinite().all() for value in newest["state_dict"].values() if value.is_floating_point())


class Signal(Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (number, step)
        if (number, step) in ((signal.SIGTERM, 3), (signal.SIGINT, 5))
        else pytest.param(number, step, marks=pytest.mark.slow)
        for number in (signal.SIGTERM, signal.SIGINT)
        for step in (1, 3, 5)
    ],
)
def test_a_signal_ends_the_run_with_its_state_saved(number: signal.Signals, step: int) -> None:
    whole = start("whole")
    whole.execute()
    handler = signal.getsignal(number)
    cli = start("stopped")
    cli.trainer.callbacks.insert(0, Signal(number, step))
    with pytest.raises(Stopped) as stopped:
        cli.execute()
    assert stopped.value.number == number
    assert stopped.value.checkpoint == cli.folder.recovery_checkpoints()[0]
    assert f"{step + 1:08d}" in stopped.value.checkpoint.name, "saved at the end of the step it was in"
    assert signal.getsignal(number) == handler
    resumed = start("stopped", "--ckpt_path", "last")
    resumed.execute()
    assert_same_weights(resumed, whole)


def test_a_stopped_run_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def built(args: list[str]) -> CLI:
        cli = start("stopped")
        cli.trainer.callbacks.insert(0, Signal(signal.SIGTERM, 2))
        return cli

    monkeypatch.setattr(command_line, "build", built)
    with pytest.raises(SystemExit) as exit_status:
        command_line.main()
    assert exit_status.value.code == 128 + signal.SIGTERM
    assert "SIGTERM: stopped; the state is saved in" in capsys.readouterr().err


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in a SLURM job: a stand-in for `scontrol` adds what it is asked to this file."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "scontrol"


def end(cli: CLI, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs the program with what it would have built; its exit status."""
    monkeypatch.setattr(command_line, "build", lambda args: cli)
    try:
        command_line.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def signals(cli: CLI, hook: str, number: int, times: int = 1) -> CLI:
    """The same, with a signal that comes in a hook of its callbacks."""

    def send(*args: Any, **kwargs: Any) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    callback = Callback()
    setattr(callback, hook, send)
    cli.trainer.callbacks.insert(0, callback)
    return cli


def train_rows(folder: RunFolder) -> list[dict[str, str]]:
    with folder.metrics.open() as file:
        rows = [{name: row[name] for name in ("step", "train/loss", "val/loss")} for row in csv.DictReader(file)]
    return [row for row in rows if row["train/loss"] or row["val/loss"]]


STATUS = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGUSR1: 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "number"),
    [("setup", signal.SIGUSR1), pytest.param("on_fit_start", signal.SIGTERM, marks=pytest.mark.slow)],
)
def test_a_signal_during_the_set_up(
    hook: str,
    number: signal.Signals,
    requeued: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run takes no step, and the same command starts it from the beginning, or from where it was."""
    assert end(signals(start("early"), hook, number), monkeypatch) == STATUS[number]
    assert f"{number.name}: stopped; it had not yet taken its first step" in capsys.readouterr().err
    assert not start("early").folder.recovery_checkpoints()
    assert requeued.is_file() == (number == signal.SIGUSR1)
    assert signal.getsignal(number) == signal.SIG_DFL

    part = start("early", "--ckpt_path", "last")
    part.trainer.callbacks.insert(0, Signal(signal.SIGTERM, 2))
    assert end(part, monkeypatch) == STATUS[signal.SIGTERM]
    again = signals(start("early", "--ckpt_path", "last"), hook, number)
    saved = again.folder.recovery_checkpoints()[0]
    capsys.readouterr()
    assert end(again, monkeypatch) == STATUS[number]
    assert f"the state is saved in {saved}" in capsys.readouterr().err
    assert again.trainer.global_step == 3

    resumed, whole = start("early", "--ckpt_path", "last"), start("whole")
    resumed.execute()
    whole.execute()
    assert_same_weights(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "number"),
    [
        ("on_fit_end", signal.SIGUSR1),
        pytest.param("on_test_start", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("on_test_batch_end", signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_during_the_test(
    hook: str,
    number: signal.Signals,
    requeued: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run ends with its training saved; the same command takes no further step and goes on to the test."""
    tests = ("--test_after_fit", "true", "--trainer.limit_test_batches", "2", "--ckpt_path", "last")
    cli = signals(start("late", *tests), hook, number)
    assert end(cli, monkeypatch) == STATUS[number]
    newest = cli.folder.recovery_checkpoints()[0]
    assert newest.name == "step=00000008.ckpt"
    assert f"{number.name}: stopped; the state is saved in {newest}" in capsys.readouterr().err
    assert requeued.is_file() == (number == signal.SIGUSR1)
    if requeued.is_file():
        assert requeued.read_text() == "requeue 7\n"
    assert not json.loads(cli.folder.summary.read_text())["test"]
    trained = train_rows(cli.folder)

    again = start("late", *tests)
    assert end(again, monkeypatch) == 0
    assert_same_weights(again, cli)
    summary = json.loads(again.folder.summary.read_text())
    assert summary["test"]
    assert summary["last"]["step"] == 8
    assert train_rows(again.folder) == trained


def test_ctrl_c_before_the_first_step_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = signals(start("early"), "setup", signal.SIGINT)
    assert end(cli, monkeypatch) == 1
    assert cli.trainer.global_step == 0


def test_a_second_process_on_the_same_run_is_refused(mistake: Callable[..., str]) -> None:
    cli = start("taken")
    with cli.folder.locked():
        line = mistake("fit", *CONFIG, *SMALL, *QUIET, "--run.id", "taken")
    assert "run.id=taken" in line
    assert f"process {os.getpid()}" in line


@pytest.mark.slow
def test_sigkill_for_real(tmp_path: Path) -> None:
    """The whole program killed by the operating system in mid-epoch, at whatever step it happens to be in."""
    options = [
        *SMALL,
        "--trainer.max_epochs",
        "30",
        "--checkpoint.every_n_train_steps",
        "3",
        *QUIET,
        "--ckpt_path",
        "last",
    ]
    command = [sys.executable, str(REPOSITORY / "train.py"), "fit", *CONFIG, *options, "--run.id"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = RunFolder(tmp_path / "runs" / "vqa" / "sort_of_clevr" / "killed")
    process = subprocess.Popen(
        [*command, "killed"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(folder.recovery_checkpoints()) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert folder.recovery_checkpoints(), "the run saved nothing in two minutes"
    summaries = []
    for run_id in ("killed", "whole"):
        subprocess.run([*command, run_id], env=environment, check=True, capture_output=True)
        run = RunFolder(folder.path.with_name(run_id))
        state = torch.load(run.recovery_checkpoints()[0], weights_only=True)
        summaries.append((state["state_dict"], json.loads(run.summary.read_text())["best"]))
    (killed, killed_best), (whole, whole_best) = summaries
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    assert killed_best == whole_best


def test_metrics_csv_grows_columns_and_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsCSV(path)
    logger.log_metrics({"a": 0.1}, step=1)
    logger.log_metrics({"b": 1 / 3}, step=2)
    logger.log_metrics({"a": 2.0, "b": float("nan")}, step=3)
    assert path.read_text().splitlines() == ["step,epoch,a,b", "1,,0.1,", "2,,,0.3333333333333333", "3,,2.0,nan"]
    with path.open("a") as file:
        file.write("4,,1.")  # a process that was killed while it wrote
    again = MetricsCSV(path)
    assert again.num_rows == 3
    again.truncate(2)
    again.log_metrics({"a": 5.0}, step=3)
    assert path.read_text().splitlines()[1:] == ["1,,0.1,", "2,,,0.3333333333333333", "3,,5.0,"]


def test_weights_and_biases_gets_configuration_manifest_and_exact_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, into the run's folder; a stand-in for `wandb.init` keeps what W&B is told."""
    import wandb

    told: dict[str, Any] = {}
    real = wandb.init

    def init(**options: Any) -> Any:
        told.update(options)
        return real(**options)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", init)
    cli = start("watched", "--run.tags", "[tried]")
    cli.execute()
    run = wandb.run
    assert run is not None
    assert (told["group"], told["job_type"], told["id"]) == ("vqa/sort_of_clevr", "fit", "watched")
    assert set(told["tags"]) == {"vqa", "sort_of_clevr", "tried"}
    assert run.config["model"]["init_args"]["fusion"] == "relation"
    assert run.config["model"]["init_args"]["answers"] == cli.model.answers, "linked values too"
    assert run.config["manifest"]["id"] == "watched"
    summary = json.loads(cli.folder.summary.read_text())
    assert run.summary["best/val/accuracy"] == summary["best"]["val/accuracy"]
    assert run.summary["last/val/loss"] == summary["last"]["val/loss"]
    run.finish()
    assert list(cli.folder.path.glob("wandb/offline-run-*/run-watched.wandb"))


def test_going_back_to_an_older_state_leaves_the_newer_ones_behind(fit: Callable[..., CLI]) -> None:
    steps = [*CONFIG, *SMALL, "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep", "5"]
    first = fit(*steps)
    states = first.folder.recovery_checkpoints()
    older = next(state for state in states if state.name == "step=00000005.ckpt")
    again = fit(*steps, "--trainer.max_steps", "6", "--ckpt_path", str(older))
    assert again.folder.path == first.folder.path
    newest = again.folder.recovery_checkpoints()[0]
    assert newest.name == "step=00000006.ckpt", "what was saved after going back is what `last` goes on from"
