"""Converts checkpoints of lightning-bolts 0.7.0.

    python -m experiments.from_lightning_bolts CHECKPOINT OUT

SimCLR and Moco_v2 are converted completely. Of AE and VAE only the encoders are converted: they decode with a reversed
ResNet, which no technique here has, so ``--encoder_only`` must confirm that a new decoder will do. Load the result with
``load_from_checkpoint(OUT, weights_only=True)`` of the module that the last line names. It takes pixels in 0..1, since
the normalization that the network was trained with is converted too.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from common.checks import one_of
from common.files import read_checkpoint
from lit_models.autoencoder import Autoencoder
from lit_models.moco import MoCo
from lit_models.networks.encoders import IMAGENET_MEAN, IMAGENET_STD, RESNETS
from lit_models.simclr import SimCLR
from lit_models.vae import VAE

Weights = dict[str, Tensor]

NORMALIZATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "cifar10": (tuple(x / 255 for x in (125.3, 123.0, 113.9)), tuple(x / 255 for x in (63.0, 62.1, 66.7))),
    "stl10": ((0.43, 0.42, 0.39), (0.27, 0.26, 0.27)),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
"""mean and deviation of pixels in 0..1, by the names of its functions"""
SIZES = {"cifar10": 32, "stl10": 96, "imagenet": 224}
"""pixels of a side of the images of its data modules"""
STEMS = {(False, False): "cifar", (True, True): "imagenet"}
"""of its ``first_conv`` and ``maxpool1``"""


class Converted(NamedTuple):
    module: type[LightningModule]
    arguments: dict[str, Any]
    weights: Weights
    left_new: tuple[str, ...] = ()
    """beginnings of the names of what has no counterpart"""


def convert(
    checkpoint: str,
    out: str,
    size: int | None = None,
    normalization: str | None = None,
    encoder_only: bool = False,
) -> LightningModule:
    """Converts a checkpoint of lightning-bolts, writes it to ``out``, and returns the module in evaluation mode.

    Args:
        checkpoint: of its SimCLR, Moco_v2, AE or VAE.
        size: pixels of a side of the images; by default what the checkpoint says (``input_height``, ``dataset``).
        normalization: of :data:`NORMALIZATIONS`, what its data module was made with; by default what its own script
            for the ``dataset`` in the checkpoint makes, and for AE and VAE none.
        encoder_only: leave the decoder of an AE or VAE as it is made, untrained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a checkpoint of something else, or of what cannot be converted; the line says why.
    """
    content = read_checkpoint(Path(checkpoint), "checkpoint")
    theirs, said = content["state_dict"], content.get("hyper_parameters", {})
    dataset = str(said.get("dataset", "")).removesuffix("2012")
    kind = _kind(theirs, checkpoint)
    size = size or said.get("input_height") or SIZES.get(dataset)
    if size is None:
        raise ValueError("size=null: expected the side of the images in pixels, since this checkpoint does not say it")
    if normalization is None:
        normalization = "none" if kind in ("AE", "VAE") else dataset
    one_of(NORMALIZATIONS, normalization=normalization or None)
    if kind in ("AE", "VAE") and not encoder_only:
        raise ValueError(
            f"encoder_only=False: expected True (--encoder_only), since the decoder of lightning-bolts' {kind}, a "
            "reversed ResNet, has no counterpart here; its encoder is converted, and the new decoder is untrained"
        )
    mean, std = NORMALIZATIONS[normalization]
    scale = {"mean": torch.tensor(mean)[:, None, None], "std": torch.tensor(std)[:, None, None]}
    try:
        made = KINDS[kind](theirs, {**said, "size": int(size)}, scale)
        model = built(made)
    except KeyError as error:
        raise ValueError(f"checkpoint={checkpoint}: a {kind} checkpoint without {error.args[0]}") from None
    hyper_parameters = {**model.hparams, "_class_path": f"{made.module.__module__}.{made.module.__qualname__}"}
    content = {"state_dict": model.state_dict(), "hyper_parameters": hyper_parameters, "epoch": 0, "global_step": 0}
    torch.save({**content, "pytorch-lightning_version": metadata.version("lightning")}, out)
    return model.eval()


def _kind(theirs: Weights, checkpoint: str) -> str:
    for kind, mark in (("MoCo", "encoder_q.conv1"), ("SimCLR", "projection.model.0"), ("VAE", "fc_mu"), ("AE", "fc")):
        if f"{mark}.weight" in theirs:
            return kind
    raise ValueError(
        f"checkpoint={checkpoint}: expected the SimCLR, Moco_v2, AE or VAE of lightning-bolts 0.7.0; its weights begin "
        f"with {', '.join(list(theirs)[:3])}"
    )


def built(made: Converted) -> LightningModule:
    """The module with these weights, which are all that it has but for ``left_new``."""
    model = made.module(**made.arguments)
    own = model.state_dict()
    for key, value in made.weights.items():
        if key in own and own[key].shape != value.shape:
            raise ValueError(f"{key}: expected {tuple(own[key].shape)}, not {tuple(value.shape)} as in the checkpoint")
    missing, unexpected = model.load_state_dict(made.weights, strict=False)
    missing = [key for key in missing if not key.startswith(made.left_new)]
    if missing or unexpected:
        raise ValueError(f"the weights do not fit {made.module.__name__}: {', '.join([*missing, *unexpected][:3])}")
    return model


# ---- one for each of its modules -------------------------------------------------------------------------------------


def _resnet(theirs: Weights, prefix: str, ours: str, scale: Weights) -> Weights:
    """A ResNet without its classifier, which has torchvision's names in both, and the scale of its pixels."""
    found = {
        ours + key.removeprefix(prefix): value
        for key, value in theirs.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}fc.")
    }
    return found | {f"{ours}rescale.{name}": value for name, value in scale.items()}


def _stem(said: Mapping[str, Any]) -> str:
    chosen = bool(said["first_conv"]), bool(said["maxpool1"])
    if chosen not in STEMS:
        raise ValueError(
            f"first_conv={chosen[0]}, maxpool1={chosen[1]}: expected both or neither, as in the stems here"
        )
    return STEMS[chosen]


def _name(name: object, argument: str) -> str:
    one_of(RESNETS, **{argument: name})
    return str(name)


def _simclr(theirs: Weights, said: Mapping[str, Any], scale: Weights) -> Converted:
    """The weights of a SimCLR whose head is linear, batch normalization, ReLU, linear.

    Ours has no bias before the normalization, which takes it out again, and one more normalization, whose weights are
    chosen so that it changes nothing in evaluation.
    """
    head = "projection.model"
    norm = {key: theirs[f"{head}.1.{key}"] for key in ("weight", "bias", "running_var", "num_batches_tracked")}
    norm["running_mean"] = theirs[f"{head}.1.running_mean"] - theirs[f"{head}.0.bias"]
    last = theirs[f"{head}.3.weight"]
    arguments = {
        "image_shape": [3, said["size"], said["size"]],
        "encoder": _name(said["arch"], "arch"),
        "stem": _stem(said),
        "head_layers": 2,
        "head_dim": len(theirs[f"{head}.0.weight"]),
        "head_norm": True,
        "out_dim": len(last),
        "temperature": said["temperature"],
    }
    model_norm = torch.nn.BatchNorm1d(len(last))
    model_norm.running_var = torch.full_like(model_norm.weight, 1 - model_norm.eps).detach()
    weights = _resnet(theirs, "encoder.", "encoder.", scale)
    weights |= {"head.0.weight": theirs[f"{head}.0.weight"], "head.3.weight": last}
    weights |= {f"head.1.{key}": value for key, value in norm.items()}
    weights |= {f"head.4.{key}": value.detach() for key, value in model_norm.state_dict().items()}
    return Converted(SimCLR, arguments, weights)


def _moco(theirs: Weights, said: Mapping[str, Any], scale: Weights) -> Converted:
    """Its queue begins as noise, all of which counts. The queue that it validates with is left out: ours is one."""
    queue = theirs["queue"].T.contiguous()
    layers = (
        {"encoder_q.fc": "0"} if "encoder_q.fc.weight" in theirs else {"encoder_q.fc.0": "0", "encoder_q.fc.2": "2"}
    )
    weights: Weights = {
        "queue.keys": queue,
        "queue.steps": torch.zeros(len(queue), dtype=torch.long),
        "queue.enqueued": len(queue) + theirs["queue_ptr"][0],
    }
    for theirs_prefix, ours in (("encoder_q", "query"), ("encoder_k", "key")):
        weights |= _resnet(theirs, f"{theirs_prefix}.", f"{ours}.encoder.", scale)
        for layer, place in layers.items():
            for part in ("weight", "bias"):
                key = re.sub("^encoder_q", theirs_prefix, layer)
                weights[f"{ours}.head.{place}.{part}"] = theirs[f"{key}.{part}"]
    arguments = {
        "image_shape": [3, said["size"], said["size"]],
        "encoder": _name(said["base_encoder"], "base_encoder"),
        "stem": "imagenet",
        "head_layers": len(layers),
        "out_dim": queue.shape[1],
        "queue_size": len(queue),
        "momentum": said["encoder_momentum"],
        "temperature": said["softmax_temperature"],
        "bn_splits": 1,
    }
    return Converted(MoCo, arguments, weights)


def _coder(said: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that AE and VAE share. A name that bolts does not know is a resnet18 to it."""
    name = said["enc_type"] if said["enc_type"] in ("resnet18", "resnet50") else "resnet18"
    expected = "cifar" if said["size"] <= 64 else "imagenet"
    if _stem(said) != expected:
        raise ValueError(
            f"size={said['size']} with the {_stem(said)} stem: expected {expected}, the stem of autoencoders here for "
            "images of that size"
        )
    return {"image_shape": [3, said["size"], said["size"]], "encoder": name}


def _autoencoder(theirs: Weights, said: Mapping[str, Any], scale: Weights) -> Converted:
    weights = _resnet(theirs, "encoder.", "encoder.0.", scale)
    weights |= {f"encoder.1.{part}": theirs[f"fc.{part}"] for part in ("weight", "bias")}
    arguments = {**_coder(said), "code_channels": len(theirs["fc.bias"]), "code_size": 1}
    return Converted(Autoencoder, arguments, weights, ("decoder.", "pca_"))


def _vae(theirs: Weights, said: Mapping[str, Any], scale: Weights) -> Converted:
    """The weights of a VAE, whose loss is ours of a Gaussian of variance ½, times 1/P, with β = kl_coeff · P/D.

    P is the number of pixels and D that of dimensions, by which it divides the two terms.
    """
    weights = _resnet(theirs, "encoder.", "encoder.0.", scale)
    for part in ("weight", "bias"):
        weights[f"encoder.1.{part}"] = torch.cat([theirs[f"fc_mu.{part}"], theirs[f"fc_var.{part}"]])
    latent_dim = len(theirs["fc_mu.bias"])
    arguments = {
        **_coder(said),
        "latent_dim": latent_dim,
        "likelihood": "gaussian",
        "sigma": 0.5**0.5,
        "beta": said["kl_coeff"] * 3 * said["size"] ** 2 / latent_dim,
    }
    return Converted(VAE, arguments, weights, ("decoder.", "log_scale"))


KINDS: dict[str, Callable[[Weights, Mapping[str, Any], Weights], Converted]] = {
    "SimCLR": _simclr,
    "MoCo": _moco,
    "AE": _autoencoder,
    "VAE": _vae,
}


def main(args: list[str]) -> int:
    """The exit status: 2 after a mistake, which is reported in one line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.from_lightning_bolts", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint of its SimCLR, Moco_v2, AE or VAE")
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: taken from the checkpoint)")
    parser.add_argument("--normalization", help=f"{', '.join(NORMALIZATIONS)} (default: that of bolts' own script)")
    parser.add_argument("--encoder_only", action="store_true", help="leave the decoder of an AE or VAE untrained")
    options = vars(parser.parse_args(args))
    try:
        model = convert(**options)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options['out']}: {type(model).__module__}.{type(model).__name__}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
