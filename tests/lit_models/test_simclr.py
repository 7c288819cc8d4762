"""SimCLR as a module: views, the head, collapse, export. Its loss is in test_contrastive.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from datamodules.contrastive_views import ContrastiveViews, ViewBatch
from datamodules.images import Digits
from experiments.cli import CLI, build
from lit_models.figures.simclr import illustrate
from lit_models.simclr import SimCLR, nt_xent
from tests.conftest import REPOSITORY

CONFIG = ["-c", str(REPOSITORY / "configs/simclr/digits.yaml")]
SMALL = ["-c", str(REPOSITORY / "tests/contracts/shrink/simclr/digits.yaml")]


def make(**options: Any) -> SimCLR:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"encoder": "conv", "width": 4, "out_dim": 6, "temperature": 0.5}
    return SimCLR(**{"image_shape": [1, 8, 8], **defaults, **options})


def batch(views: int = 2, small: int = 0, count: int = 8) -> ViewBatch:
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(views, count, 1, 8, 8, generator=generator)
    return ViewBatch(images=large[0], labels=torch.arange(count), views=large, small=torch.rand(small, count, 1, 6, 6))


def test_all_views_go_through_the_network_together() -> None:
    model, data = make(), batch()
    z = model.head(model.encoder(torch.cat([*data.views])))
    expected = nt_xent(z.unflatten(0, (2, 8)), 0.5)
    torch.testing.assert_close(model.training_step(data, 0)["loss"], expected)
    apart = torch.stack([model.head(model.encoder(view)) for view in data.views])
    assert float((nt_xent(apart, 0.5) - expected).abs().detach()) > 1e-4, "batch normalization makes a difference"


def test_small_views_are_views_too() -> None:
    model, data = make(), batch(2, small=3)
    z = torch.cat([model.project(data.views), model.project(data.small)])
    assert z.shape == (5, 8, 6)
    torch.testing.assert_close(model.training_step(data, 0)["loss"], nt_xent(z, 0.5))


def test_the_representation_is_before_the_head() -> None:
    model = make().eval()
    images = batch().views[0]
    assert torch.equal(model.encode(images), model.encoder(images))
    assert model.encode(images).shape == (8, 8)
    projection = make(representation="projection").eval()
    assert torch.equal(projection.encode(images), model.head(model.encoder(images)))


def test_decay_by_shape_or_of_everything() -> None:
    def sgd(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.1, weight_decay=0.01)

    for decay_vectors in (False, True):
        model = make(optimizer=sgd, scheduler=None, decay_vectors=decay_vectors, head_norm=True)
        groups = model.configure_optimizers()["optimizer"].param_groups  # type: ignore[index, call-overload]
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert len(decay) == len(list(model.parameters()))
        for name, p in model.named_parameters():
            assert decay[id(p)] == (0.01 if decay_vectors or p.dim() > 1 else 0), name


def test_a_collapse_is_warned_of_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make(), batch()
    monkeypatch.setattr(SimCLR, "global_step", 7)
    monkeypatch.setattr(model, "log_dict", lambda scores: None)
    with warnings.catch_warnings(action="error"):
        model.validation_step(data, 0)
        model.on_validation_epoch_end()
    torch.nn.init.zeros_(model.head[-1].weight)
    model.validation_step(data, 0)
    with pytest.warns(UserWarning, match=r"collapse: .* nearly one point \(step 7, val/projection_std 0\.0000\)"):
        model.on_validation_epoch_end()


def test_the_export_is_torchvisions() -> None:
    model = make(image_shape=[3, 32, 32], encoder="resnet18", width=64, stem="imagenet")
    theirs = resnet18()
    missing, unexpected = theirs.load_state_dict(model.export(), strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    assert unexpected == []
    theirs.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(theirs.eval()((images - 0.5) / 0.5), model.eval().encode(images))


@pytest.mark.slow
def test_views_of_the_same_image_become_alike(fit: Callable[..., CLI]) -> None:
    cli = fit(*CONFIG, "--trainer.max_epochs", "10", "--data.batch_size", "128", "--test_after_fit", "false")
    data, model = cli.datamodule, cli.model.eval()
    with torch.no_grad():
        first, second = (F.normalize(model.encode(v.images), dim=1) for v in data.two_views(data.part("val")))
    same = (first * second).sum(1).mean()
    assert float(same) > float((first @ second.T).mean()) + 0.1


def test_one_view_is_a_mistake(mistake: Callable[..., str]) -> None:
    assert mistake("fit", *CONFIG, *SMALL, "--data.views", "1") == "views=1: SimCLR expects at least 2 per image"


@pytest.mark.slow
def test_the_projection_of_a_trained_model_can_be_probed(
    fit: Callable[..., CLI], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = fit(*CONFIG, *SMALL, "--trainer.max_steps", "2", "--test_after_fit", "false")
    best = str(cli.folder.recovery_checkpoints()[0])
    other = build(["test", "--ckpt_path", best, "--model.representation", "projection"])
    other.execute()
    assert other.model.encode(torch.rand(2, 1, 8, 8)).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected more than 0"),
        ({"representation": "h"}, "representation='h': expected 'encoder' or 'projection'"),
        ({"out_dim": 0}, "out_dim=0: expected at least 1"),
        ({"head_layers": 4}, "head_layers=4: expected 1, 2 or 3"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("size", [6, 12])
def test_pictures_where_views_have_another_size_than_the_images(size: int) -> None:
    data = ContrastiveViews(Digits(), batch_size=8, size=size)
    data.setup()
    stored = next(iter(data.val_dataloader()))
    model = make(image_shape=data.image_shape)
    made = illustrate(model, data.on_after_batch_transfer(stored, 0))
    assert set(made) == {"views", "neighbors", "map", "similarities"}
    assert model.training
