"""Checkpoints that the real lightning-bolts has written, as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from experiments.from_lightning_bolts import convert, main
from lit_models.autoencoder import Autoencoder
from lit_models.linear_probe import LinearProbe
from lit_models.moco import MoCo
from lit_models.simclr import SimCLR
from lit_models.vae import VAE
from tests.bolts.overlay import Theirs

pytestmark = [pytest.mark.slow, pytest.mark.bolts]

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "simclr": (SimCLR, {}),
    "moco": (MoCo, {"size": 32, "normalization": "cifar10"}),
    "ae": (Autoencoder, {"encoder_only": True}),
    "vae": (VAE, {"encoder_only": True}),
}


def loaded(name: str, folder: Path, tmp_path: Path) -> Any:
    module, options = CASES[name]
    convert(str(folder / f"{name}.ckpt"), str(tmp_path / "ours.ckpt"), **options)
    return module.load_from_checkpoint(tmp_path / "ours.ckpt", weights_only=True).eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_representation_is_the_same(name: str, theirs: Theirs, bolts_folder: Path, tmp_path: Path) -> None:
    """Of pixels in 0..1, where theirs were normalized before."""
    model, found = loaded(name, bolts_folder, tmp_path), theirs["checkpoints"]
    images = found["images"]
    torch.testing.assert_close(model.encode(images), found[name], rtol=1e-5, atol=1e-6)
    if name == "simclr":
        z = F.normalize(model.head(model.encode(images)), dim=1)
        torch.testing.assert_close(z, found["simclr.z"], rtol=1e-5, atol=1e-6)
        assert (model.temperature, model.hparams["out_dim"]) == (0.5, 16)
    elif name == "moco":
        for ours, part in ((model.query, "q"), (model.key, "k")):
            torch.testing.assert_close(F.normalize(ours(images), dim=1), found[f"moco.{part}"], rtol=1e-5, atol=1e-6)
        assert torch.equal(model.queue.keys, found["moco.queue"])
        assert int(model.queue.enqueued) == 24 + 12, "all 24 count, and the next key is the thirteenth"
        assert (model.momentum, model.temperature, model.bn_splits) == (0.9, 0.2, 1)
    elif name == "vae":
        torch.testing.assert_close(model.posterior_of(images)[1], found["vae.log_var"], rtol=1e-5, atol=1e-6)
        assert model.beta == pytest.approx(0.1 * 3 * 32 * 32 / 8)


def test_training_goes_on_with_the_same_normalization(bolts_folder: Path, tmp_path: Path) -> None:
    """It is in the weights from now on: what is saved and loaded again, or probed, has it too."""
    model = loaded("simclr", bolts_folder, tmp_path)
    again = SimCLR(
        **{key: model.hparams[key] for key in ("image_shape", "encoder", "stem", "head_dim", "head_norm", "out_dim")}
    )
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.encoder.rescale.mean.flatten(), torch.tensor([125.3, 123.0, 113.9]) / 255)
    probe = LinearProbe(image_shape=[3, 32, 32], num_classes=10, checkpoint=str(tmp_path / "ours.ckpt"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(probe.eval().encoder.encode(images), model.encode(images))


def test_what_cannot_come_over_is_said(bolts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours.ckpt"
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, other)
    (tmp_path / "text").write_text("no checkpoint")
    cases = {
        "the decoder of lightning-bolts' AE": [bolts_folder / "ae.ckpt"],
        "the decoder of lightning-bolts' VAE": [bolts_folder / "vae.ckpt"],
        "first_conv=True, maxpool1=False: expected both or neither": [bolts_folder / "simclr_stl10.ckpt"],
        "size=null: expected": [bolts_folder / "moco.ckpt"],
        "normalization=None: expected": [bolts_folder / "moco.ckpt", "--size", "32"],
        "normalization='imagnet': expected 'none', 'cifar10'": [
            bolts_folder / "simclr.ckpt",
            "--normalization",
            "imagnet",
        ],
        "size=96 with the cifar stem": [bolts_folder / "ae.ckpt", "--encoder_only", "--size", "96"],
        "its weights begin with layer.weight": [other],
        "text: broken (": [tmp_path / "text"],
        "nowhere: no such file; expected a checkpoint": [tmp_path / "nowhere"],
    }
    for line, (checkpoint, *options) in cases.items():
        assert main([str(checkpoint), str(out), *map(str, options)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert line in said, said
        assert not out.exists()


def test_the_command_says_what_was_written(
    bolts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours.ckpt"
    assert main([str(bolts_folder / "simclr.ckpt"), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: lit_models.simclr.SimCLR\n"
