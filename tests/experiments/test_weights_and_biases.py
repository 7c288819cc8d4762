"""What Weights & Biases has of a run: read back with its own reader, and the checkpoint that is sent to it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import wandb

from experiments.cli import CLI
from tests.conftest import REPOSITORY

TINY = [
    *("-c", REPOSITORY / "configs/vqa/sort_of_clevr.yaml"),
    *("-c", REPOSITORY / "tests/contracts/shrink/vqa/sort_of_clevr.yaml"),
    *("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"),
    *("--trainer.log_every_n_steps", "1", "--trainer.limit_test_batches", "1", "--figures.every_n_epochs", "null"),
    *("--run.id", "watched", "--run.tags", "[tried]"),
]


def inspect(*options: str) -> str:
    """What ``wandb leet inspect`` prints; skips where this version of wandb has no such command."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect"]
    known = subprocess.run([*command, "--help"], capture_output=True, text=True)
    if known.returncode or "--summary" not in known.stdout:
        pytest.skip(f"wandb {wandb.__version__} has no `wandb leet inspect --summary` to read a run with")
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_offline_run_can_be_read_with_their_reader(fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    cli = fit(*TINY)
    wandb.finish()
    (file,) = cli.folder.path.glob("wandb/offline-run-*/run-watched.wandb")

    content = json.loads(inspect("--summary", "--json", str(file)))
    assert (content["run_id"], content["project"], content["exit_code"]) == ("watched", "lit-baselines", 0)
    assert set(content["tags"]) == {"vqa", "sort_of_clevr", "tried"}
    model = content["config"]["model"]
    assert model["class_path"] == "lit_models.vqa.VQA"
    assert model["init_args"]["fusion"] == "relation"
    assert model["init_args"]["answers"] == cli.model.answers, "what the data told the model, too"
    assert content["config"]["trainer"]["max_epochs"] == 2
    assert content["config"]["manifest"]["starts"][0]["batch"]["global"] == 4

    ours = json.loads(cli.folder.summary.read_text())
    expected = {f"{when}/{name}": value for when in ("best", "last") for name, value in ours[when].items()}
    expected |= ours["test"] | {"samples_per_second": ours["samples_per_second"]}
    assert {name: content["summary"].get(name) for name in expected} == pytest.approx(expected, nan_ok=True)
    assert {"best/val/accuracy", "last/val/loss", "test/accuracy"} <= expected.keys()

    records = [json.loads(line) for line in inspect("--json", str(file)).splitlines()]
    run = next(record["run"] for record in records if record["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("vqa/sort_of_clevr", "fit")
    assert not [record for record in records if "artifact" in record["type"]], "nothing to send a checkpoint with"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_best_checkpoint_is_an_artifact_when_online(
    mode: str, fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MagicMock(id="watched")
    sent: list[tuple[Any, list[str], bytes]] = []

    def log_artifact(artifact: Any, aliases: list[str]) -> None:
        (entry,) = artifact.manifest.entries.values()
        sent.append((artifact, aliases, Path(entry.local_path).read_bytes()))

    run.log_artifact = log_artifact
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "init", lambda **options: run)
    cli = fit(*TINY)
    if mode == "offline":
        assert not sent
        return
    ((artifact, aliases, content),) = sent
    best = cli.folder.best_checkpoint()
    assert best is not None
    assert (artifact.name, artifact.type) == ("model-watched", "model")
    assert "best" in aliases
    assert content == best.read_bytes()
