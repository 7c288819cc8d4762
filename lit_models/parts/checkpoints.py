"""Loads a trained module from its checkpoint, for techniques that build on another."""

from __future__ import annotations

import os
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from common.files import read_checkpoint


def trained_module(checkpoint: str, argument: str = "checkpoint") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The class path and arguments of the module that a checkpoint holds, and its weights.

    Args:
        checkpoint: its path, in which ``~`` and variables of the environment are replaced.
        argument: what the path was given as, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint is given, or it is broken or does not say what module it is of.
    """
    if not checkpoint:
        raise ValueError(f"{argument}='': expected a checkpoint of a trained module")
    path = Path(os.path.expanduser(os.path.expandvars(checkpoint)))
    content = read_checkpoint(path, argument)
    arguments = dict(content.get("hyper_parameters", {}))
    if "_class_path" not in arguments:
        raise ValueError(f"{argument}={path}: expected a checkpoint of a run of train.py")
    class_path = arguments.pop("_class_path")
    arguments.pop("_instantiator", None)
    return {"class_path": class_path, "init_args": arguments}, content["state_dict"]


def rebuilt(made_of: dict[str, Any]) -> LightningModule:
    """A module of this class with these arguments and new weights."""
    package, _, name = made_of["class_path"].rpartition(".")
    # What a file says is imported from here only, and called only if it is a technique.
    made = getattr(import_module(package), name, None) if package.startswith("lit_models.") else None
    if not (isinstance(made, type) and issubclass(made, LightningModule) and made.__module__ == package):
        raise ValueError(f"checkpoint: contains a {made_of['class_path']}, expected a module of lit_models")
    known = signature(made).parameters  # a checkpoint also holds facts of the data that this class did not ask for
    return made(**{key: value for key, value in made_of["init_args"].items() if key in known})
