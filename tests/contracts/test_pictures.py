"""A trained model sees a picture as the training saw it, whatever the picture, and in whatever form it is given.

At the sizes of the configurations themselves: nothing is made small here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.pictures import Preprocessing, opened
from datamodules.image_tree import ImageTree
from datamodules.parts.decoding import decode_all
from datamodules.parts.image_features import decode_photograph
from datamodules.parts.image_sets import ImageBatch, Images
from datamodules.parts.wrapped_images import WrappedImages
from experiments.cli import CLI, build
from tests.conftest import NO_PICTURES, NO_PROBE, QUIET, REPOSITORY
from tests.contracts.conftest import CONFIGS, ONE_OF_EACH, classes_of, options_of


def model_class(name: str) -> type:
    package, _, model = classes_of(name)["model"].rpartition(".")
    found: type = getattr(import_module(package), model)
    return found


WITH_PICTURES = [name for name in CONFIGS if "preprocessing" in inspect.signature(model_class(name)).parameters]


def write_pictures(folder: Path) -> list[Path]:
    """Pictures as people have them: tall, wide, transparent, lying on their side, of 16 bits, CMYK, with a palette."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    smooth = np.kron(generator.integers(0, 256, (12, 8, 3), np.uint8), np.ones((25, 25, 1), np.uint8))  # 300×200
    tall = Image.fromarray(smooth)
    alpha = np.zeros((300, 200), np.uint8)
    alpha[100:250, 50:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    saved: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("tall.png", tall, {}),
        ("wide.png", tall.transpose(Image.Transpose.TRANSPOSE), {}),
        ("transparent.png", Image.fromarray(np.dstack([smooth, alpha])), {}),
        ("turned.jpg", tall, {"exif": exif, "quality": 95}),
        ("deep.png", Image.fromarray(smooth[..., 0].astype(np.uint16) * 256 + 77), {}),
        ("print.jpg", tall.convert("CMYK"), {"quality": 95}),
        ("palette.gif", tall.quantize(16), {}),
        ("tiny.png", tall.resize((3, 5)), {}),
    ]
    for name, image, options in saved:
        image.save(folder / name, **options)
    return [folder / name for name, _, _ in saved]


def forms_of(file: Path) -> Iterator[Any]:
    """A picture in each form in which a person may have it, without losing anything."""
    yield file
    yield str(file)
    with Image.open(file) as image:
        image.load()
        yield image
        if image.mode in ("RGB", "RGBA", "I;16") and "exif" not in image.info:
            array = np.asarray(image)
            yield array
            yield torch.from_numpy(array.copy()).movedim(-1, 0) if array.ndim == 3 else torch.from_numpy(array.copy())
            if array.dtype == np.uint8:
                yield array / 255
    upright = np.asarray(opened(file))
    yield upright
    yield torch.from_numpy(upright.copy()).movedim(-1, 0) if upright.ndim == 3 else torch.from_numpy(upright.copy())


def given_by(data: Any, files: list[Path]) -> Tensor:
    """(N, C, H, W): what a data module of this kind gives the model in evaluation if its pictures are these files."""
    source = data.source if isinstance(data, WrappedImages) else data
    channels, height, width = source.image_shape
    assert height == width
    if not isinstance(source, Images):
        batch = torch.stack([decode_photograph(file, height, source.preprocessing["fit"], "") for file in files])
        return batch.float() / 255
    fit = source.preprocessing["fit"]
    tree = ImageTree(str(files[0].parents[1]), height, fit=fit, grayscale=channels == 1, test_fraction=0)
    if isinstance(data, WrappedImages):
        data.source = tree
    images, _ = decode_all(tree.tree, tree.form)
    names = [Path(name).name for name in tree.tree.names]
    part = ImageBatch(torch.from_numpy(images), torch.from_numpy(tree.tree.labels))
    whole = data.to_float(part).images
    return torch.stack([whole[names.index(file.name)] for file in files])


@pytest.fixture(
    params=[name if name in ONE_OF_EACH else pytest.param(name, marks=pytest.mark.slow) for name in WITH_PICTURES]
)
def cli(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CLI:
    """A configuration with everything as large as it says, but its data where there are none here."""
    name = request.param
    _, data = options_of(name, tmp_path / "data")
    own = tmp_path / "data"
    reads_folders = "ImageTree" in (REPOSITORY / "configs" / f"{name}.yaml").read_text()
    for folder in ("imagenet/train", "imagenet/val", "photos") if reads_folders else ():
        for kind in ("one", "two"):
            write_pictures(own / folder / kind)
    monkeypatch.setenv("LIT_DATA", str(own if own.exists() else data))
    options = ["-c", str(REPOSITORY / "configs" / f"{name}.yaml"), *NO_PICTURES, *NO_PROBE, *QUIET]
    arguments = inspect.signature(model_class(name)).parameters
    if "pretrained" in arguments:
        options += ["--model.pretrained", "false"]
    if reads_folders and "num_workers" in (REPOSITORY / "configs" / f"{name}.yaml").read_text():
        options += ["--data.source.num_workers", "0"]
    if "checkpoint" in arguments:
        shape = {"digits": [1, 8, 8], "folder": [3, 64, 64]}.get(name.split("/")[1], [3, 32, 32])
        encoder = import_module("lit_models.simclr").SimCLR(shape, encoder="conv", width=4, out_dim=8)
        content = {"state_dict": encoder.state_dict(), "hyper_parameters": dict(encoder.hparams)}
        content["hyper_parameters"]["_class_path"] = "lit_models.simclr.SimCLR"
        torch.save(content, tmp_path / "encoder.ckpt")
        options += ["--model.checkpoint", str(tmp_path / "encoder.ckpt")]
    return build(["fit", *options])


def test_use_equals_training(cli: CLI, tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "own" / "a")
    write_pictures(tmp_path / "own" / "b")
    model: Any = cli.model.eval()
    assert model.preprocess == Preprocessing(cli.datamodule.image_shape, **cli.datamodule.preprocessing)
    given = given_by(cli.datamodule, files)
    assert list(given.shape[1:]) == list(model.preprocess.image_shape)
    for file, expected in zip(files, given, strict=True):
        for form in forms_of(file):
            found = model.preprocess(form, model)
            assert torch.equal(found[0], expected), f"{file.name} as {type(form).__name__}"
    assert torch.equal(model.preprocess(files, model), given)

    # And so through everything that it can be asked, also after it was saved.
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "it.ckpt", map_location="cpu", weights_only=True).eval()
    assert loaded.preprocess == model.preprocess
    for verb in verbs_of(loaded):
        assert_same(verb(files[2]), verb(given[2]))
        assert_same(verb(files[3]), verb(given[3]))


def verbs_of(model: Any) -> list[Callable[[Any], Any]]:
    """What a model can be asked about one picture."""
    other = torch.full(tuple(model.preprocess.image_shape), 0.25)
    verbs: dict[str, list[Callable[[Any], Any]]] = {
        "Autoencoder": [lambda image: model.reconstruct(image), lambda image: model.interpolate(image, other)],
        "VAE": [lambda image: model.reconstruct(image), lambda image: model.traverse(image, 0)],
        "MetricLearning": [
            lambda image: model.embedding(image),
            lambda image: model.distance(other, image),
            lambda image: model.nearest(other, [other, image]),
        ],
        "LinearProbe": [lambda image: model.classify(image)],
        "Captioner": [lambda image: model.caption(image), lambda image: model.caption(image, method="beam")],
        "VQA": [lambda image: model.answer(image, "what is it ?")],
    }
    found = verbs.get(type(model).__name__, [])
    if hasattr(model, "encode"):
        found = [*found, lambda image: model.encode(image[None] if isinstance(image, Tensor) else image)]
    assert found
    return found


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # of another memory layout
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    elif isinstance(expected, dict):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert found == pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else found == expected
