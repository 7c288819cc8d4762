"""Python checks no Literal: an unknown name would choose the last branch, another network or other data, silently."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from lightning.pytorch import LightningDataModule, LightningModule

import datamodules
import lit_models
from datamodules.degradations import Task

Choices = tuple[str | None, ...]

FACTS: dict[str, Any] = {
    "answers": ["yes", "no"],
    "batch_size": 2,
    "captions_per_image": None,
    "check": True,
    "broken": "error",
    "features": None,
    "fit": "crop",
    "folder": Path("nowhere"),
    "image_size": 8,
    "min_count": 1,
    "num_answers": 2,
    "num_workers": 0,
    "page": "",
    "attributes": {"shape": ["circle", "square"]},
    "image_shape": [3, 32, 32],
    "longest": 5,
    "num_classes": 2,
    "path": "nowhere",
    "question_types": ["shape"],
    "representation": "random",
    "source": "nowhere",
    "vocab": ["<pad>", "<unk>", "a"],
}
"""what arguments without a default get"""


def literals() -> Iterator[tuple[type, str, Choices]]:
    """Each Literal argument of each class that a configuration can name, and all that it may be."""
    for package in (lit_models, datamodules):
        for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(file.name)
            for _, made in inspect.getmembers(module, inspect.isclass):
                if made.__module__ == file.name and issubclass(made, (LightningModule, LightningDataModule, Task)):
                    for name, hint in get_type_hints(made.__init__).items():
                        members = [hint] if get_origin(hint) is Literal else list(get_args(hint))
                        if any(get_origin(member) is Literal for member in members):
                            yield made, name, tuple(c for member in members for c in get_args(member) or (None,))


FOUND = {f"{made.__name__}.{name}": (made, name, choices) for made, name, choices in literals()}


def test_the_literals_are_found() -> None:
    assert FOUND.keys() >= {"VQA.norm", "Captioner.pooling", "CharText.split", "SuperResolve.kernel"}
    assert FOUND["MoCo.stem"][2] == ("cifar", "imagenet", None)


@pytest.mark.parametrize("value", ["nonsense", None])
@pytest.mark.parametrize("argument", FOUND)
def test_an_unknown_choice_is_refused(argument: str, value: str | None) -> None:
    made, name, choices = FOUND[argument]
    if value in choices:
        return
    needed = [key for key, each in inspect.signature(made).parameters.items() if each.default is each.empty]
    facts = {key: FACTS[key] for key in needed}
    with pytest.raises(ValueError, match=f"^{name}={value!r}: expected {re.escape(repr(choices[0]))}"):
        made(**facts | {name: value})
