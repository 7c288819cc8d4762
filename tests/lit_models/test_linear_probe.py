"""The offline linear probe: what is frozen stays, and what a checkpoint holds is all that it needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from experiments.cli import CLI, build
from lit_models.linear_probe import LinearProbe
from lit_models.simclr import SimCLR
from tests.conftest import NO_PROBE, QUIET, REPOSITORY
from tests.contracts.encoder_checkpoint import prepare
from tests.lit_models.networks.test_encoders import fake_weights

CONFIG = ["-c", str(REPOSITORY / "configs/linear_probe/digits.yaml"), *NO_PROBE]


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    prepare(tmp_path)
    return str(tmp_path / "encoder.ckpt")


def state(encoder: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in encoder.state_dict().items()}


def train(fit: Callable[..., CLI], checkpoint: str, *options: str) -> LinearProbe:
    small = ("--data.source.limit", "200", "--data.batch_size", "20", "--trainer.max_epochs", "2")
    cli = fit(*CONFIG, "--model.checkpoint", checkpoint, *small, "--test_after_fit", "false", *options)
    return cli.model


def test_frozen_means_weights_and_batch_norm_statistics(fit: Callable[..., CLI], checkpoint: str) -> None:
    model = train(fit, checkpoint)
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    after = state(model.encoder)
    assert any("running_mean" in key for key in before)
    for key, value in before.items():
        assert torch.equal(after[key], value), key
    assert not torch.equal(model.norm.running_mean, torch.zeros_like(model.norm.running_mean)), "the probe did train"
    assert not model.train().encoder.training
    assert model.classifier.training


def test_fine_tuning_moves_both(fit: Callable[..., CLI], checkpoint: str) -> None:
    model = train(fit, checkpoint, "--model.frozen", "false")
    before = torch.load(checkpoint, weights_only=True)["state_dict"]
    after = state(model.encoder)
    for key in before:
        if key.startswith("encoder.") and ("running_mean" in key or key.endswith("1.weight")):
            assert not torch.equal(after[key], before[key]), key


@pytest.mark.parametrize(("fraction", "expected"), [("0.01", 13), ("0.1", 129)])
def test_a_share_of_the_labels(fit: Callable[..., CLI], checkpoint: str, fraction: str, expected: int) -> None:
    options = ("--model.checkpoint", checkpoint, "--data.label_fraction", fraction, "--data.batch_size", "4")
    cli = fit(*CONFIG, *options, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    loader = cli.datamodule.train_dataloader()
    assert loader.num_samples == expected
    assert loader.source.labels.unique().tolist() == list(range(10))
    assert len(cli.datamodule.part("train").labels) > 1000, "the probe's bank is whole"


@pytest.mark.slow
def test_it_learns_the_classes_and_names_them(fit: Callable[..., CLI], tmp_path: Path) -> None:
    simclr = ("-c", str(REPOSITORY / "configs/simclr/digits.yaml"), "--trainer.max_epochs", "5")
    trained = fit(*simclr, "--test_after_fit", "false").folder.recovery_checkpoints()[0]
    cli = fit(*CONFIG, "--model.checkpoint", trained, "--trainer.max_epochs", "20")
    assert float(cli.trainer.callback_metrics["test/accuracy"]) > 0.85

    Path(trained).unlink()  # nothing else is needed to use it
    best = cli.folder.best_checkpoint()
    model = LinearProbe.load_from_checkpoint(best, map_location="cpu", weights_only=True)
    assert isinstance(model.encoder, SimCLR)
    part = cli.datamodule.part("test")
    right = [
        max(model.classify(image), key=model.classify(image).__getitem__) == str(int(label))
        for image, label in zip(part.images[:40], part.labels[:40], strict=True)
    ]
    assert sum(right) > 30
    probabilities = model.classify(part.images[0])
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)


def test_a_test_of_a_checkpoint_needs_nothing_else(fit: Callable[..., CLI], checkpoint: str) -> None:
    options = ("--model.checkpoint", checkpoint, "--data.source.limit", "200", "--data.batch_size", "20")
    cli = fit(*CONFIG, *options, "--trainer.max_epochs", "1")
    tested = float(cli.trainer.callback_metrics["test/accuracy"])
    Path(checkpoint).unlink()
    again = build(["test", "--ckpt_path", str(cli.folder.best_checkpoint())])
    again.execute()
    assert float(again.trainer.callback_metrics["test/accuracy"]) == tested


@pytest.mark.parametrize("technique", ["moco", "vae", "autoencoder"])
def test_any_module_that_encodes(technique: str, fit: Callable[..., CLI]) -> None:
    config = ("-c", str(REPOSITORY / f"configs/{technique}/digits.yaml"))
    small = ("-c", str(REPOSITORY / f"tests/contracts/shrink/{technique}/digits.yaml"), "--trainer.max_steps", "2")
    trained = fit(*config, *small, "--test_after_fit", "false").folder.recovery_checkpoints()[0]
    model = LinearProbe([1, 8, 8], 10, str(trained), frozen=False)
    model(torch.rand(6, 1, 8, 8)).sum().backward()  # also in groups that MoCo would not have
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        if name.startswith("encoder.key") or "decoder" in name:
            assert not parameter.requires_grad


def test_classes_have_the_names_of_the_data(fit: Callable[..., CLI], tmp_path: Path) -> None:
    arguments = {"image_shape": [3, 64, 64], "encoder": "conv", "width": 2}
    content = {"state_dict": SimCLR(**arguments).state_dict(), "hyper_parameters": arguments}
    torch.save({**content, "hyper_parameters": {**arguments, "_class_path": "lit_models.simclr.SimCLR"}}, "e.ckpt")
    shapes = ("--data.source", "datamodules.shapes.Shapes", "--data.source.limit", "60", "--trainer.max_steps", "1")
    cli = fit(*CONFIG, *shapes, "--model.checkpoint", "e.ckpt", "--data.batch_size", "20", "--test_after_fit", "false")
    assert sorted(cli.model.classify(torch.rand(3, 64, 64))) == ["circle", "rectangle", "triangle"]


def test_variables_in_the_path(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINED", str(Path(checkpoint).parent))
    model = LinearProbe([1, 8, 8], 10, checkpoint="$TRAINED/encoder.ckpt")
    assert model(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_mistakes_are_named(tmp_path: Path, checkpoint: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint=.*encodr.ckpt: no such file; .*encoder.ckpt'\?"):
        LinearProbe([1, 8, 8], 10, checkpoint.replace("encoder", "encodr"))
    with pytest.raises(ValueError, match=r"trained on images of \[1, 8, 8\], but these are \[3, 32, 32\]"):
        LinearProbe([3, 32, 32], 10, checkpoint)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint=.*text.ckpt: broken"):
        LinearProbe([1, 8, 8], 10, str(tmp_path / "text.ckpt"))
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "os.path.join"
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"contains a os.path.join, expected a module of lit_models"):
        LinearProbe([1, 8, 8], 10, str(tmp_path / "other.ckpt"))
    for path in ("lit_models.linear_probe.import_module", "lit_models.simclr.SimClr"):
        content["hyper_parameters"] = {"_class_path": path, "name": "this"}
        torch.save(content, tmp_path / "called.ckpt")
        with pytest.raises(ValueError, match=f"contains a {path}, expected a module of lit_models"):
            LinearProbe([1, 8, 8], 10, str(tmp_path / "called.ckpt"))
    content["hyper_parameters"] = {"_class_path": "lit_models.char_lm.CharLM", "vocab": ["a", "b"]}
    torch.save(content, tmp_path / "text_model.ckpt")
    with pytest.raises(ValueError, match=r"contains a lit_models.char_lm.CharLM, which has no encode"):
        LinearProbe([1, 8, 8], 10, str(tmp_path / "text_model.ckpt"))


# Weights from a library.


def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks whose weights are fetched from now on; the weights are random."""
    fake_weights(monkeypatch, "resnet18")
    weights = type(models.get_model_weights("resnet18")["DEFAULT"])
    made, fetched = weights.get_state_dict, []

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        fetched.append(str(self))
        return made(self, *args, **options)

    monkeypatch.setattr(weights, "get_state_dict", counted)
    return fetched


@pytest.mark.slow
def test_pretrained_encoders_keep_their_scale_of_pixels_and_are_fetched_once(
    fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetches(monkeypatch)
    options = ("--model.encoder", "resnet18", "--model.stem", "imagenet", "--model.width", "null")
    simclr = ("-c", str(REPOSITORY / "configs/simclr/digits.yaml"), *options, "--model.pretrained", "true", *NO_PROBE)
    small = ("--data.source.limit", "40", "--data.batch_size", "20", "--trainer.max_epochs", "1")
    best = ("--best.monitor", "val/loss", "--best.mode", "min")
    cli = fit(*simclr, *small, *best)
    assert len(fetched) == 1
    checkpoint = str(cli.folder.best_checkpoint())
    images = torch.rand(4, 1, 8, 8)
    expected = cli.model.eval().encode(images)
    assert float(cli.model.encoder.rescale.mean) == pytest.approx((0.485 + 0.456 + 0.406) / 3)

    probe = LinearProbe([1, 8, 8], 10, checkpoint)
    torch.testing.assert_close(probe.encoder.encode(images), expected)
    loaded = SimCLR.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
    torch.testing.assert_close(loaded.encode(images), expected)
    tested = build(["test", "--ckpt_path", checkpoint, *NO_PROBE, *QUIET])
    tested.execute()
    torch.testing.assert_close(tested.model.eval().encode(images), expected)
    assert len(fetched) == 1, "a checkpoint brings the weights along"


def test_weights_that_cannot_be_fetched_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(type(models.get_model_weights("resnet18")["DEFAULT"]), "get_state_dict", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of resnet18 could not be fetched \(no network\); get https://.*pth"):
        SimCLR([3, 96, 96], "resnet18", pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_network_of_a_library_needs_no_checkpoint(
    pretrained: bool, fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetches(monkeypatch)
    options = ("--model.network", "resnet18", "--model.pretrained", str(pretrained), "--model.frozen", "false")
    small = ("--data.source.limit", "40", "--data.batch_size", "20", "--trainer.max_epochs", "1")
    cli = fit(*CONFIG, "--model.checkpoint", "", *options, *small)
    assert len(fetched) == pretrained
    images = torch.rand(4, 1, 8, 8)
    best = cli.folder.best_checkpoint()
    loaded = LinearProbe.load_from_checkpoint(best, map_location="cpu", weights_only=True).eval()
    torch.testing.assert_close(loaded(images), cli.model.eval()(images))
    assert len(fetched) == pretrained
    assert all(parameter.requires_grad for parameter in loaded.encoder.encoder.parameters()), "it was fine-tuned"


def test_either_a_checkpoint_or_a_network(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="with network='resnet18': expected one of the two"):
        LinearProbe([1, 8, 8], 10, checkpoint, network="resnet18")
    with pytest.raises(ValueError, match="checkpoint='' with network=null: expected one of the two"):
        LinearProbe([1, 8, 8], 10)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_classifier_is_exported_to_torchvision(standardize: bool) -> None:
    torch.manual_seed(0)
    probe = LinearProbe([3, 32, 32], 5, network="resnet18", pretrained=False, standardize=standardize)
    if standardize:
        probe.norm.running_mean.uniform_(0, 1)
        probe.norm.running_var.uniform_(0.5, 2)
    network = models.resnet18(num_classes=5)
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()  # as export says
    network.load_state_dict(probe.export())
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(network.eval()(2 * images - 1), probe.eval()(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="encoder=Untrained: expected a network of torchvision or timm"):
        LinearProbe([3, 32, 32], 5, network="conv", pretrained=False).export()
