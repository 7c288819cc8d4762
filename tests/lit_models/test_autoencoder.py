"""The autoencoder: any image size, the code's shape, PCA at the same size, corruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as SklearnPCA
from torch import Tensor

from experiments.cli import CLI
from lit_models.autoencoder import Autoencoder, reconstruction_loss
from lit_models.scores.pca import PCA
from tests.conftest import NO_PROBE


def make(**options: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**{"image_shape": [1, 8, 8], "channels": (4, 8), "code_channels": 5, **options})


def images(count: int = 6, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def test_losses_are_means_over_pixels() -> None:
    a, b = images(2), images(2).flip(0)
    assert torch.allclose(reconstruction_loss("mse", a, b), ((a - b) ** 2).mean((1, 2, 3)))
    assert torch.allclose(reconstruction_loss("l1", a, b), (a - b).abs().mean((1, 2, 3)))
    p = a.sigmoid()
    nats = -(b * p.log() + (1 - b) * (1 - p).log())
    assert torch.allclose(reconstruction_loss("bce", a, b), nats.mean((1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "layers", "code_size", "expected"),
    [
        ([1, 8, 8], 2, 1, [5, 1, 1]),
        ([1, 8, 8], 2, None, [5, 2, 2]),
        ([1, 28, 28], 3, 1, [5, 1, 1]),
        ([1, 28, 28], 3, 2, [5, 2, 2]),
        ([3, 32, 32], 3, None, [5, 4, 4]),
        ([3, 20, 33], 2, 1, [5, 1, 5]),
    ],
)
def test_the_codes_shape_is_what_it_says(
    shape: list[int], layers: int, code_size: int | None, expected: list[int]
) -> None:
    model = make(image_shape=shape, channels=(4, 8, 16)[:layers], code_size=code_size)
    x = images(2, tuple(shape))
    assert model.code_shape == expected
    assert list(model.code(x).shape) == [2, *expected]
    assert model.encode(x).shape == (2, model.code_dim)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (40, 8), (31, 17)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model = make()
    x = images(2, (1, *size))
    assert model(x).shape == x.shape
    # Where it is trained at one size and used at another, the same place is encoded alike.
    if size == (40, 8):
        assert torch.allclose(model.code(x[:, :, :8])[:, :, 0], model.code(x)[:, :, 0], atol=0.5)


def test_images_smaller_than_the_codes_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="images of 4×8: expected at least 5×5 for this code"):
        make().encode(images(2, (1, 4, 8)))
    assert make().encode(images(2, (1, 5, 5))).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code_size": 3}, "code_size=3: expected 1 to 2, the map's size after 2 layers"),
        ({"code_size": 0}, "code_size=0"),
        ({"loss": "mae"}, "loss='mae': expected 'mse', 'l1' or 'bce'"),
        ({"corruption": "blur"}, "corruption='blur': expected 'none', 'noise' or 'mask'"),
        ({"corruption_level": 1.0}, r"corruption_level=1.0: expected a number in \[0, 1\)"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_corruption_is_what_it_says_and_repeats() -> None:
    x = torch.ones(300, 1, 8, 8)
    noisy = make(corruption="noise", corruption_level=0.2)
    damage = noisy.corrupted(x, 1, 2) - x
    assert float(damage.mean()) == pytest.approx(0, abs=0.01)
    assert float(damage.std()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(noisy.corrupted(x, 1, 2), noisy.corrupted(x, 1, 2))
    assert not torch.equal(noisy.corrupted(x, 1, 2), noisy.corrupted(x, 1, 3))
    masked = make(corruption="mask", corruption_level=0.3, image_shape=[3, 8, 8]).corrupted(torch.ones(300, 3, 8, 8), 1)
    assert float((masked == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(masked[:, 0], masked[:, 1]), "a pixel goes with all of its channels"
    assert torch.equal(make().corrupted(x, 1), x)


def test_pca_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12)) + 3
    ours = PCA(12)
    for part in torch.tensor(samples).split(64):
        ours.update(part)
    mean, components = ours.compute(4)
    theirs = SklearnPCA(4).fit(samples)
    assert np.allclose(mean, samples.mean(0))
    # up to the sign of each
    assert np.allclose(np.abs(components.numpy() @ theirs.components_.T), np.eye(4), atol=1e-6)


def test_a_fit_compares_the_code_with_as_many_components(fit: Callable[..., CLI]) -> None:
    cli = fit(
        *("--model", "lit_models.autoencoder.Autoencoder", "--data", "datamodules.images.Digits"),
        *("--model.channels", "[8, 16]", "--model.code_channels", "6", "--trainer.max_epochs", "2"),
        *("--trainer.limit_train_batches", "20", "--best.monitor", "val/mse", *NO_PROBE),
    )
    model, data = cli.model.cpu(), cli.datamodule
    train = torch.cat([data.to_float(b).images for b in data.plain_loader("train")]).flatten(1).numpy()
    test = torch.cat([data.to_float(b).images for b in data.plain_loader("test")]).flatten(1).numpy()
    pca = SklearnPCA(6).fit(train)
    restored = pca.inverse_transform(pca.transform(test)).clip(0, 1)
    expected = float(((restored - test) ** 2).mean())
    assert float(cli.trainer.callback_metrics["test/pca_mse"]) == pytest.approx(expected, rel=1e-4)
    loaded = Autoencoder.load_from_checkpoint(cli.folder.best_checkpoint(), weights_only=True)
    assert torch.equal(loaded.pca_components, model.pca_components), "a loaded model has its yardstick with it"


@pytest.mark.slow
def test_other_images_get_components_of_their_own(fit: Callable[..., CLI]) -> None:
    config = [
        *("--model", "lit_models.autoencoder.Autoencoder", "--data", "datamodules.images.Digits"),
        *("--model.channels", "[4, 8]", "--model.code_channels", "4", "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--best.monitor", "val/mse", "--test_after_fit", "false", *NO_PROBE),
    ]
    old = fit(*config)
    new = fit(*config, "--data.limit", "300", "--init_from", str(old.folder.best_checkpoint()))
    assert not torch.allclose(new.model.pca_mean, old.model.pca_mean)
    assert torch.equal(new.model.pca_mean, fit(*config, "--data.limit", "300").model.pca_mean)


def test_large_images_are_not_compared_with_pca() -> None:
    large = make(image_shape=[3, 64, 64])
    assert not large.compares
    assert large.pca_components.numel() == 0
    assert make(image_shape=[1, 64, 64]).compares


def test_use() -> None:
    model = make()
    x = images(2)
    picture = model.reconstruct(x[0])
    assert picture.shape == (1, 1, 8, 8)
    path = model.interpolate(x[0], x[1], 4)
    assert path.shape == (4, 1, 8, 8)
    assert torch.allclose(path[0], picture[0], atol=1e-6)
    assert torch.allclose(path[-1], model.reconstruct(x[1])[0], atol=1e-6)
    assert model.training
    with pytest.raises(ValueError, match="steps=1: expected at least 2"):
        model.interpolate(x[0], x[1], 1)
