"""The table of representations: every row is made with the same encoder, images, epochs and probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.decomposition import PCA

from experiments.cli import CLI, build
from lit_models.autoencoder import Autoencoder
from lit_models.untrained import Untrained
from lit_models.vae import VAE
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "configs/representations"
ROWS = ["autoencoder", "moco", "pca", "pixels", "random", "siamese", "simclr", "supervised", "triplet", "vae"]
OF_EACH_KIND = ("autoencoder", "pca", "siamese", "simclr")
"""from pixels, untrained, from examples, from views"""


def init_args(file: Path, part: str) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text())[part]["init_args"])


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_sweep_has_every_row_and_they_differ_in_the_method_alone(name: str) -> None:
    files = sorted((FOLDER / name).glob("*.yaml"))
    assert [file.stem for file in files] == ROWS
    sweep = yaml.safe_load((REPOSITORY / f"configs/sweeps/representations_{name}.yaml").read_text())
    assert sorted(sweep["parameters"]["config"]["values"]) == [str(file.relative_to(REPOSITORY)) for file in files]
    assert sweep["parameters"]["seed_everything"]["values"] == [0, 1, 2]
    for file in files:
        assert yaml.safe_load(file.read_text())["run"]["name"] == f"representations/{name}_{file.stem}"
        epochs = {"max_epochs": 1} if file.stem in ("pca", "pixels", "random") else None
        assert yaml.safe_load(file.read_text()).get("trainer") == epochs, "epochs are those of all that are trained"
    for part, keys in (("model", ("encoder", "width")), ("data", ("batch_size",))):
        for key in keys:
            assert len({init_args(file, part)[key] for file in files}) == 1, key
    optimizers = [init_args(file, "model").get("optimizer") for file in files]
    trained = [optimizer for optimizer in optimizers if optimizer]
    assert len(trained) == 7
    assert all(optimizer == trained[0] for optimizer in trained)
    views = [init_args(file, "data").get("augmentation") for file in files]
    assert len([view for view in views if view]) == 5, "of whatever learns from labels or from views"
    assert all(view in (None, views[ROWS.index("simclr")]) for view in views)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("row", [row for row in ROWS if row != "pixels"])
def test_every_row_is_of_as_many_numbers(name: str, row: str) -> None:
    cli = build(["fit", "-c", str(FOLDER / f"shared/{name}.yaml"), "-c", str(FOLDER / f"{name}/{row}.yaml")])
    images = torch.rand(2, *cli.datamodule.image_shape)
    with torch.no_grad():
        assert cli.model.eval().encode(images).flatten(1).shape == (2, 128)
    assert getattr(cli.model, "decay_vectors", True), "norms and biases are decayed in all of them"


@pytest.mark.parametrize(
    "row", [row if row in OF_EACH_KIND else pytest.param(row, marks=pytest.mark.slow) for row in ROWS]
)
def test_a_row_is_made(row: str, fit: Callable[..., CLI], tmp_path: Path) -> None:
    """On digits instead of MNIST, which differ in nothing that the configuration says."""
    text = (FOLDER / f"mnist/{row}.yaml").read_text().replace("images.MNIST", "images.Digits")
    file = tmp_path / "row.yaml"
    file.write_text(text.replace("queue_size: 4096", "queue_size: 512").replace("width: 32", "width: 4"))
    cli = fit("-c", FOLDER / "shared/mnist.yaml", "-c", file, "--trainer.max_epochs", "1")
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    for name in ("knn_accuracy", "probe_accuracy", "probe_accuracy_1pct", "alignment", "uniformity", "effective_rank"):
        assert torch.tensor(metrics[f"test/{name}"]).isfinite(), name
    assert metrics["test/knn_accuracy"] > 0.2


@pytest.mark.parametrize("row", ROWS)
def test_a_row_on_cifar10_parses(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        build(
            [
                "fit",
                "-c",
                str(FOLDER / "shared/cifar10.yaml"),
                "-c",
                str(FOLDER / f"cifar10/{row}.yaml"),
                "--print_config",
            ]
        )
    assert exit_status.value.code in (0, None)
    assert "CIFAR10" in capsys.readouterr().out


def untrained(kind: Any, fit: Callable[..., CLI], tmp_path: Path) -> CLI:
    file = tmp_path / f"{kind}.yaml"
    file.write_text(
        "run: {name: untrained/digits}\n"
        f"model: {{class_path: lit_models.untrained.Untrained, init_args: {{representation: {kind}, width: 4}}}}\n"
        "data: {class_path: datamodules.images.Digits}\n"
        "best: {monitor: val/knn_accuracy, mode: max}\ntrainer: {max_epochs: 1}\n"
    )
    return fit("-c", file)


def test_principal_components_are_scikit_learns(fit: Callable[..., CLI], tmp_path: Path) -> None:
    model, data = (cli := untrained("pca", fit, tmp_path)).model, cli.datamodule
    images = data.part("train").images.float() / 255
    assert model.components.shape == (8, 64), "as many as the encoder has features"
    theirs = PCA(8).fit(images.flatten(1))
    found = model.encode(images[:50]).abs()
    torch.testing.assert_close(
        found, torch.from_numpy(theirs.transform(images[:50].flatten(1))).abs().float(), atol=1e-3, rtol=1e-3
    )
    loaded = Untrained.load_from_checkpoint(str(cli.folder.best_checkpoint()), weights_only=True)
    assert torch.equal(loaded.encode(images[:5]), model.encode(images[:5]))


@pytest.mark.slow
def test_what_is_untrained_stays_as_it_is(fit: Callable[..., CLI], tmp_path: Path) -> None:
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(Untrained([1, 8, 8], "pixels").encode(images), images.flatten(1))
    cli = untrained("random", fit, tmp_path)
    assert sum(p.numel() for p in cli.model.parameters() if p.requires_grad) == 0
    fresh = build(["fit", "-c", str(tmp_path / "random.yaml")]).model  # of the same seed
    best = torch.load(str(cli.folder.best_checkpoint()), weights_only=True)["state_dict"]
    assert best.keys() == fresh.state_dict().keys()
    for name, weights in fresh.state_dict().items():
        assert torch.equal(best[name], weights), name
        assert torch.equal(cli.model.state_dict()[name], weights), name
    other = build(["fit", "-c", str(tmp_path / "random.yaml"), "--seed_everything", "1"]).model
    assert not torch.equal(other.encoder[1].weight, fresh.encoder[1].weight)
    with pytest.raises(ValueError, match="representation='noise': expected 'pixels', 'pca', 'random' or 'pretrained'"):
        Untrained([1, 8, 8], "noise")  # type: ignore[arg-type]


def test_autoencoders_on_an_encoder_of_other_techniques() -> None:
    images = torch.rand(4, 3, 18, 18)
    model = Autoencoder([3, 18, 18], code_channels=10, encoder="resnet18", width=4)
    assert model.encode(images).shape == (4, 10)
    assert model(images).shape == images.shape
    vae = VAE([3, 18, 18], latent_dim=6, encoder="conv", width=4)
    assert [part.shape for part in vae.posterior_of(images)] == [(4, 6), (4, 6)]
    with pytest.raises(ValueError, match="code_size=None: expected 1 with encoder='conv'"):
        Autoencoder([3, 16, 16], code_size=None, encoder="conv")
    with pytest.raises(ValueError, match="encoder='conv': expected null with network='mlp'"):
        VAE([3, 16, 16], network="mlp", encoder="conv")
