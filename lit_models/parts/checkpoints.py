"""A trained module out of its checkpoint, for techniques that build on another."""

from __future__ import annotations

import os
import pickle
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


def trained_module(checkpoint: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The class path and arguments of the module that a checkpoint holds, and its weights."""
    checkpoint = os.path.expanduser(os.path.expandvars(checkpoint))
    if not Path(checkpoint).is_file():
        raise ValueError(
            f"checkpoint={checkpoint or '(none)'}: no such file; expected a checkpoint of a trained module"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        arguments = {key: value for key, value in content["hyper_parameters"].items() if key != "_instantiator"}
        class_path = arguments.pop("_class_path")
        if arguments.get("pretrained"):
            arguments["pretrained"] = False  # other weights follow
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        reason = "trained without the command line" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise ValueError(f"checkpoint={checkpoint}: expected one of a module of this repository ({reason})") from None
    return {"class_path": class_path, "init_args": arguments}, content["state_dict"]


def rebuilt(made_of: dict[str, Any]) -> LightningModule:
    """A module of such a class and arguments, with new weights."""
    package, _, name = made_of["class_path"].rpartition(".")
    # What a file says is imported from here only, and called only if it is a technique.
    made = getattr(import_module(package), name, None) if package.startswith("lit_models.") else None
    if not (isinstance(made, type) and issubclass(made, LightningModule) and made.__module__ == package):
        raise ValueError(f"checkpoint: holds a {made_of['class_path']}, expected a module of lit_models")
    known = signature(made).parameters  # a checkpoint also holds facts of the data that this class did not ask for
    return made(**{key: value for key, value in made_of["init_args"].items() if key in known})
