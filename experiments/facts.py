"""Facts of the data, handed to whatever model has an argument of that name."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule


def shared_facts(model: type, data: type) -> set[str]:
    """The constructor arguments of a model that the data module has an attribute for."""
    return set(inspect.signature(model).parameters) & attributes_of(data)


def attributes_of(data: type) -> set[str]:
    """Names of the public attributes that instances of a data module have beyond Lightning's own.

    They are read off the class, since an instance may take minutes to make: what is declared in its body, and what its
    methods assign to ``self``.
    """
    names: set[str] = set()
    for part in data.__mro__:
        if part in LightningDataModule.__mro__:
            continue
        names |= {*vars(part), *inspect.get_annotations(part), *_assigned(part)}
    return {name for name in names if not name.startswith("_")} - set(dir(LightningDataModule))


@cache
def _assigned(part: type) -> frozenset[str]:
    """Names of the attributes that the methods of a class assign to ``self``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
    except (OSError, TypeError, SyntaxError):  # there is no source, as of a class typed at a prompt
        return frozenset()
    stored = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return frozenset(n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self")


def classes_asked_for(args: list[str], base: Path) -> tuple[type | None, type | None]:
    """The classes of model and data that a command line chooses; None for what can't be told or imported.

    What is wrong with them is for the parser to say, which looks again.

    Args:
        args: the command line, subcommand first.
        base: the configuration that is always underneath.
    """
    chosen: dict[str, str] = {}
    files = [str(base)]
    for option, value in [*pairwise(args), *(arg.split("=", 1) for arg in args if arg.startswith("-") and "=" in arg)]:
        if option in ("-c", "--config"):
            files.append(value)
    for file in files:
        content = _mapping(file)
        for part in ("model", "data"):
            found = content.get(part)
            path = found.get("class_path") if isinstance(found, dict) else found
            if isinstance(path, str):
                chosen[part] = path
    for option, value in [*pairwise(args), *(arg.split("=", 1) for arg in args if arg.startswith("-") and "=" in arg)]:
        part = option.removeprefix("--").removesuffix(".class_path")
        if part in ("model", "data") and option.startswith("--"):
            chosen[part] = value
    return _imported(chosen.get("model")), _imported(chosen.get("data"))


def _mapping(file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _imported(class_path: str | None) -> type | None:
    module, _, name = (class_path or "").rpartition(".")
    try:
        made = getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return made if isinstance(made, type) else None
