"""Techniques on folders as people have them: without classes, by class, and like ImageNet's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.cli import CLI
from tests.conftest import REPOSITORY

TREE = "datamodules.image_tree.ImageTree"
SHORT = ["--trainer.max_epochs", "1", "--figures.every_n_epochs", "0"]


def paint(file: Path, seed: int, hue: int = 0) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 128, (*generator.integers(30, 60, 2), 3), dtype=np.uint8)
    pixels[..., hue % 3] += 100
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CONTRASTIVE = ["--data.source", TREE, "--data.source.path", "pictures", "--data.source.size", "8"]
PLAIN = ["--data", TREE, "--data.path", "pictures", "--data.size", "8"]
UNLABELED: dict[str, tuple[list[str], set[str]]] = {
    "simclr": ([*CONTRASTIVE, "--model.width", "4", "--data.batch_size", "20"], {"views", "map", "neighbors"}),
    "moco": (
        [*CONTRASTIVE, "--model.width", "4", "--data.batch_size", "20", "--model.queue_size", "40"],
        {"views", "map", "neighbors"},
    ),
    "autoencoder": ([*PLAIN, "--data.batch_size", "20"], {"reconstructions", "codes"}),
    "vae": ([*PLAIN, "--data.batch_size", "20", "--model.test_samples", "2"], {"reconstructions", "samples"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("technique", list(UNLABELED))
def test_what_needs_no_labels_trains_on_a_folder_of_pictures(
    technique: str, fit: Callable[..., CLI], caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        paint(Path("pictures") / f"{number:02}.jpg", number)
    options, pictures = UNLABELED[technique]
    config = REPOSITORY / "configs" / technique / "digits.yaml"
    with caplog.at_level("INFO"):
        cli = fit("-c", config, "--run.name", f"{technique}/own", *options, *SHORT)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("pictures: 60 pictures, no classes; 49 train, 5 val, 6 test") == 1
    (line,) = [each for each in said if "no representation probe: the data have no labels" in each]
    summary = json.loads(cli.folder.summary.read_text())
    chosen = "val/mse" if technique == "autoencoder" else "val/loss"
    assert ("becomes val/loss" in line) == (technique in ("simclr", "moco"))
    assert summary["monitor"] == chosen
    assert chosen in summary["best"]
    assert "test/loss" in summary["test"]
    assert cli.folder.best_checkpoint() is not None
    for moment in ("epoch_0001", "test"):
        assert pictures <= {file.stem for file in (cli.folder.figures / moment).iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr/imagenet", "moco/imagenet", "moco/imagenet_v1"])
def test_configurations_of_imagenet_train_evaluate_and_draw(name: str, fit: Callable[..., CLI]) -> None:
    for part, count in (("train", 12), ("val", 5)):
        for place in range(4):
            for number in range(count):
                paint(Path("data/imagenet", part, f"n0{place}", f"{number}.JPEG"), 50 * place + number, place)
    options = ["--model.encoder", "conv", "--model.stem", "null", "--model.width", "4", "--data.batch_size", "12"]
    options += ["--data.source.size", "24", "--data.size", "16", "--data.source.num_workers", "1"]
    if name.startswith("moco"):
        options += ["--model.queue_size", "24", "--model.bn_splits", "2"]
    cli = fit("-c", REPOSITORY / "configs" / f"{name}.yaml", *options, *SHORT)
    summary = json.loads(cli.folder.summary.read_text())
    assert {"val/loss", "val/knn_accuracy", "val/probe_accuracy"} <= set(summary["best"])
    assert summary["monitor"] == "val/knn_accuracy"
    assert cli.folder.best_checkpoint() is not None
    drawn = {file.stem for file in (cli.folder.figures / "epoch_0001").iterdir()}
    assert drawn == {"views", "neighbors", "map", "similarities"}
